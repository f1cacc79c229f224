"""Files that are read: one descriptor for as long as a file is used, and an error where it changes meanwhile."""

import hashlib
import io
import os
import re
import stat
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lit_merge.errors import MergeError

T = TypeVar("T")
LFS_POINTER = b"version https://git-lfs"
# Bytes of a description, as an index or a configuration: what safetensors allows its headers.
LONGEST_TEXT = 100_000_000
# Nanoseconds in which a file system may give two changes one time.
TICK = 20_000_000
# Openings of a folder that is replaced each time while it is opened.
TRIES = 100
# Of a digest.
BLOCKS, BLOCK = 64, 4096
# A pipe would be waited for until somebody writes into it.
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_lock = threading.RLock()
_opened: "weakref.WeakSet[InputFile]" = weakref.WeakSet()


class _Descriptor:
    """Closed with the last who holds it: a thread that reads keeps it while another lets go of the file."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # Of its own: at the end of Python names of modules are gone.
        close(self.number)


class InputFile:
    """A regular file, read by position as it was when it was opened.

    Where another file takes its name, the one that was opened is read to the end. Where it is written into, every
    read fails from then on. Of very many files some are closed, and opened again if they are still the same.

    Args:
        path: of the file.
        expected: what it should be, for messages.

    Attributes:
        size: in bytes.
        stamp: path, size and time of the last change in nanoseconds: what tells it from other files.

    Raises:
        MergeError: missing, unreadable, a folder, a pipe or a device.
    """

    def __init__(self, path: Path, expected: str = "a file") -> None:
        self.path = path
        self._descriptor: _Descriptor | None = _open(path, expected)
        self._state = _state(self._descriptor)
        for _ in range(TRIES):
            # A change in the same moment would leave the time as it is.
            if not 0 <= time.time_ns() - self._state[1] < TICK:
                break
            time.sleep(TICK / 1e9 / 4)
            self._state = _state(self._descriptor)
        self.size = self._state[0]
        self.stamp = (str(path.absolute()), *self._state[:2])
        with _lock:
            _opened.add(self)

    def __getstate__(self) -> dict[str, object]:
        """Another process opens it anew, if it is still the same."""
        return vars(self) | {"_descriptor": None}

    def read(self, position: int = 0, count: int | None = None) -> bytes:
        """Bytes from there on, fewer than `count` where the file ends; all of them for None.

        Raises:
            MergeError: the file cannot be read, or was changed.
        """
        rest = max(0, self.size - position)
        data = bytearray(rest if count is None else min(count, rest))
        self.read_into(position, memoryview(data), "it")
        return bytes(data)

    def read_into(self, position: int, out: memoryview, what: str) -> None:
        """Fills `out` from there on; `what` it is, for messages.

        Raises:
            MergeError: the file cannot be read, ends before, or was changed since it was opened.
        """
        descriptor = self._hold()
        try:
            while out and (count := _read(descriptor.number, out, position)):
                position, out = position + count, out[count:]
            now = _state(descriptor)
        except OSError as error:
            raise MergeError(f"{self.path}: could not read {what}: {error.strerror}") from error
        if now[:2] != self._state[:2]:
            raise MergeError(
                f"{self.path}: could not read {what}: the file was changed while it was used (it had {self.size:,} "
                f"bytes, and has {now[0]:,}): wait until it is whole, and start again"
            )
        if out:
            raise MergeError(f"{self.path}: could not read {what}: the file ends before it")

    def text(self, expected: str, most: int = LONGEST_TEXT) -> bytes:
        """All of a small file.

        Raises:
            MergeError: it has more than `most` bytes, cannot be read, or was changed.
        """
        if self.size > most:
            raise MergeError(f"{self.path} has {self.size:,} bytes, expected {expected} of at most {most:,}")
        return self.read()

    def digest(self) -> str:
        """Of the size and of blocks that are spread evenly over the file: little is read of a large one."""
        found = hashlib.blake2b(f"{self.size}".encode(), digest_size=16)
        for i in range(BLOCKS):
            found.update(self.read(i * max(0, self.size - BLOCK) // (BLOCKS - 1), BLOCK))
        return found.hexdigest()

    def start(self, expected: str, count: int = 64) -> bytes:
        """What it begins with.

        Raises:
            MergeError: the file is empty, or a Git LFS pointer.
        """
        found = self.read(0, count)
        if not found:
            raise MergeError(f"{self.path} is empty (0 bytes), expected {expected}: copy or download it again")
        if found.startswith(LFS_POINTER):
            raise MergeError(f"{self.path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
        return found

    def _hold(self) -> _Descriptor:
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = _open(self.path, "the file that it was")
            if _state(descriptor) != self._state:
                raise MergeError(f"{self.path} was replaced while it was used: start again")
            with _lock:
                self._descriptor = descriptor
                _opened.add(self)
        return descriptor


def memory() -> int:
    """Bytes of memory that the machine has; very many where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return 1 << 50


def of_one_moment(folder: Path, open: Callable[[], T]) -> T:
    """What `open` opens of a folder's files, all from one and the same folder: it tries again where another folder took
    the name meanwhile, as when a command overwrites its output.

    Raises:
        MergeError: as `open`, or the folder is replaced again and again.
    """
    for _ in range(TRIES):
        try:
            # Held, so that no other folder can get its number.
            descriptor = os.open(folder, READ)
        except OSError:
            return open()
        try:
            found = open()
            if _is_still(folder, descriptor):
                return found
        except MergeError:
            if _is_still(folder, descriptor):
                raise
        finally:
            os.close(descriptor)
    raise MergeError(f"{folder} is replaced again and again while it is opened: wait until it is written")


def _is_still(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(descriptor))
    except OSError:
        return False


def _open(path: Path, expected: str) -> _Descriptor:
    with _lock:
        if len(_opened) >= _most():
            _let_go()
        try:
            descriptor = _Descriptor(os.open(path, READ))
        except FileNotFoundError as error:
            # As the hub names its models; a path of one's own more often has a suffix, or a folder that exists.
            hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)) and not path.suffix and not path.parent.exists()
            raise MergeError(f"{path}: no such file{f'; a model of the hub is hf://{path}' if hub else ''}") from error
        except IsADirectoryError as error:
            raise MergeError(f"{path} is a folder, expected {expected}") from error
        except (OSError, ValueError) as error:
            raise MergeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    mode = os.fstat(descriptor.number).st_mode
    if stat.S_ISDIR(mode):
        raise MergeError(f"{path} is a folder, expected {expected}")
    if not stat.S_ISREG(mode):
        raise MergeError(f"{path} is a pipe or a device, expected {expected}")
    return descriptor


def _most() -> int:
    """How many files are held open: the system allows so many descriptors, and other work needs some."""
    try:
        import resource
    except ImportError:  # Windows
        return 256
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(1, soft // 2)


def _let_go() -> None:
    """Closes all files that are not being read; those that are used again are opened again."""
    for file in list(_opened):
        file._descriptor = None
    _opened.clear()


def _state(descriptor: _Descriptor) -> tuple[int, int, int, int]:
    found = os.fstat(descriptor.number)
    return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino


def _read(descriptor: int, out: memoryview, position: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [out], position)
    with _lock:
        os.lseek(descriptor, position, os.SEEK_SET)
        with io.FileIO(descriptor, closefd=False) as file:
            return file.readinto(out) or 0
