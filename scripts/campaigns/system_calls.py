"""System calls on files, held by the kernel until another process has had its say (seccomp's user notifications).

Calls of Python, of libraries in C and Rust, and of ctypes are held alike. Linux alone has this, and no special right is
needed. The numbers are those of `man 2 seccomp`, `man 2 seccomp_unotify` and the kernel's tables of calls.
"""

import ctypes
import fcntl
import platform
import struct
from contextlib import suppress

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Number on x86_64 and on aarch64, where it has one.
CHANGES = {
    "write": (1, 64),
    "pwrite64": (18, 68),
    "writev": (20, 66),
    "pwritev": (296, 70),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    "open": (2, None),
    "openat": (257, 56),
    "creat": (85, None),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
}
READS = {"read": (0, 63), "pread64": (17, 67), "readv": (19, 65), "preadv": (295, 69), "getdents64": (217, 61)}

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_NOTIFICATION, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000


def numbers(reads: bool) -> dict[int, str]:
    """Number → name on this machine."""
    column = list(ARCHITECTURES).index(platform.machine())
    return {
        both[column]: name for name, both in (CHANGES | (READS if reads else {})).items() if both[column] is not None
    }


def hold(reads: bool = False) -> int:
    """Has the kernel hold this process's and its children's calls from now on.

    Returns:
        The descriptor that answers them, for another process: calls wait for it, those of its own too.

    Raises:
        OSError: the kernel does not offer it.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(f"system calls of {machine} are not known")
    held = list(numbers(reads))
    lines = [(_LOAD, 0, 0, 4), (_EQUALS, 0, len(held) + 1, ARCHITECTURES[machine]), (_LOAD, 0, 0, 0)]
    lines += [(_EQUALS, len(held) - i, 0, number) for i, number in enumerate(held)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOTIFY)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    about = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl")
    # SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_NEW_LISTENER.
    listener = libc.syscall(_SECCOMP[machine], 1, 8, about)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


def receive(listener: int) -> tuple[int, int, int, tuple[int, ...]]:
    """The next call: its cookie, the thread, the number and the arguments."""
    notification = bytearray(_NOTIFICATION.size)
    fcntl.ioctl(listener, _RECEIVE, notification)
    cookie, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
    return cookie, thread, number, tuple(arguments)


def answer(listener: int, cookie: int, error: int = 0) -> None:
    """Lets a call go on, or has it fail with an error's number."""
    with suppress(FileNotFoundError):  # killed meanwhile
        fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(cookie, 0, -error, 0 if error else 1)))
