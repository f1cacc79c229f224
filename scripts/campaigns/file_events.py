"""File events of a command: every system call that changes or reads a file of one folder, before it is done."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from campaigns import system_calls
from campaigns.forks import Ended, Process

KILL = -1
"""Answer of a decision: the process dies before the call."""
Decide = Callable[["Event"], int | None]
"""Is asked before every event: None lets it be, KILL and the number of an error do not."""

WRITES = ("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range", "ftruncate", "fallocate")
# Calls with a path as the first argument, and those with a folder's descriptor before it.
_PATH = ("open", "creat", "rename", "unlink", "mkdir", "rmdir", "truncate", "link", "symlink", "chmod")
_AT = ("openat", "renameat", "renameat2", "unlinkat", "mkdirat", "linkat", "fchmodat")


@dataclass(frozen=True)
class Event:
    """A call that is about to be made.

    Attributes:
        number: how many there were before it.
        call: its name.
        path: of what it is about.
        other: the second path of a rename or link.
        changes: whether it changes anything; otherwise it reads.
        creates: whether it is an opening that makes a file where there is none.
    """

    number: int
    call: str
    path: Path
    other: Path | None = None
    changes: bool = True
    creates: bool = False

    def __str__(self) -> str:
        return f"event {self.number}: {self.call} {self.path.name}{f' to {self.other.name}' if self.other else ''}"


def run_held(
    work: Callable[[], object],
    folder: Path,
    decide: Decide,
    reads: bool = False,
    also: tuple[Path, ...] = (),
    seconds: float | None = None,
) -> Ended:
    """Runs a function in a fork, and asks before every event.

    Args:
        work: as `Process` takes it.
        folder: where it runs, and whose files count.
        decide: see `Decide`. After KILL it is not asked again.
        reads: whether reading counts too.
        also: other files and folders that count.
        seconds: that it may take from one call to the next.
    """
    process = Process(work, folder, held="all" if reads else "changes")
    names, watched = system_calls.numbers(True), tuple(f"{place.resolve()}/" for place in (folder, *also))
    assert process.listener is not None
    count = 0
    while process.next_call(seconds):
        try:
            cookie, thread, number, arguments = system_calls.receive(process.listener)
        except OSError:  # killed meanwhile
            continue
        event = _describe(count, thread, names[number], arguments)
        verdict = None
        places = () if event is None else (event.path, event.other)
        ours = any(f"{path}/".startswith(watched) for path in places if path)
        if event is not None and ours and (event.changes or reads):
            verdict = decide(event)
            count += 1
        if verdict == KILL:
            process.kill()
            break
        system_calls.answer(process.listener, cookie, verdict or 0)
    return process.end(seconds)


def can_hold() -> bool:
    """Whether calls of forks can be held here, and their paths be read."""
    seen: list[Event] = []
    with tempfile.TemporaryDirectory() as folder, suppress(OSError):
        run_held(lambda: os.mkdir("made"), Path(folder), seen.append)
    return bool(seen)


def _describe(number: int, thread: int, call: str, arguments: tuple[int, ...]) -> Event | None:
    """None for what is about no file."""
    try:
        if call in _PATH or call in _AT:
            return _of_paths(number, thread, call, arguments)
        if call == "symlink":
            return Event(number, call, _path(thread, None, arguments[1]))
        if call == "symlinkat":
            return Event(number, call, _path(thread, arguments[1], arguments[2]))
        descriptor = arguments[2] if call == "copy_file_range" else arguments[0]
        path = os.readlink(f"/proc/{thread}/fd/{descriptor}")
        return Event(number, call, Path(path), changes=call not in system_calls.READS) if path[:1] == "/" else None
    except OSError:  # not there: the call will fail
        return None


def _of_paths(number: int, thread: int, call: str, arguments: tuple[int, ...]) -> Event:
    at = call in _AT
    path = _path(thread, arguments[0] if at else None, arguments[1 if at else 0])
    if call in ("rename", "link"):
        return Event(number, call, path, _path(thread, None, arguments[1]))
    if call in ("renameat", "renameat2", "linkat"):
        return Event(number, call, path, _path(thread, arguments[2], arguments[3]))
    if call in ("open", "openat"):
        flags = arguments[2 if at else 1]
        creates = bool(flags & os.O_CREAT) and not path.exists()
        return Event(number, call, path, changes=creates or bool(flags & os.O_TRUNC), creates=creates)
    return Event(number, call, path, creates=call == "creat")


def _path(thread: int, folder: int | None, address: int) -> Path:
    text = b""
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        while b"\0" not in text:
            memory.seek(address + len(text))
            # Not beyond a page: the next one need not be there.
            text += memory.read(4096 - (address + len(text)) % 4096)
    path = os.fsdecode(text.partition(b"\0")[0])
    if not path.startswith("/"):
        own = folder is None or folder & 0xFFFFFFFF == 0xFFFFFF9C  # AT_FDCWD
        path = os.path.join(os.readlink(f"/proc/{thread}/{'cwd' if own else f'fd/{folder}'}"), path)
    return Path(os.path.normpath(path))
