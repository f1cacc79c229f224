"""What killed processes leave behind: locks end with their process and tell its leftovers from a living one's work."""

import os
import shutil
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and leftovers stay
    fcntl = None  # type: ignore[assignment]

# Never a name that a user would give.
SUFFIX = ".writing"
_held: set[int] = set()


def _close_in_child() -> None:
    # A fork shares its parent's locks: a reading process of a DataLoader would hold them seconds longer.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def lock(folder: Path) -> int | None:
    """Locks a folder until `unlock` or the end of this process, however it ends.

    Returns:
        A descriptor for `unlock`; None where the file system has no locks.

    Raises:
        BlockingIOError: another process has it.
        FileNotFoundError: there is no such folder, or not any more.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been removed between the two: then the lock is on nothing.
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            raise FileNotFoundError(folder)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    _held.add(descriptor)
    return descriptor


def unlock(descriptor: int | None) -> None:
    """Gives a lock back."""
    if descriptor is not None:
        _held.discard(descriptor)
        os.close(descriptor)


def make_workplace(target: Path) -> tuple[Path, int | None]:
    """A fresh, locked folder next to `target` to write it in, and its lock."""
    while True:
        workplace = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=SUFFIX, dir=target.parent))
        try:
            return workplace, lock(workplace)
        except (BlockingIOError, FileNotFoundError):
            # Another process took it for a leftover before it was locked, and removes it.
            continue


def clear_leftovers(target: Path) -> None:
    """Removes what killed processes left next to `target` while they wrote it, and puts back a folder that one had
    moved away and not yet replaced."""
    for entry in os.scandir(target.parent):
        if not (entry.name.startswith(f".{target.name}.") and entry.name.endswith(SUFFIX)):
            continue
        workplace = Path(entry.path)
        try:
            descriptor = lock(workplace)
        except OSError:
            continue
        if descriptor is None:
            continue
        # A folder is moved away only when the new one is whole.
        new, old = workplace / target.name, workplace / f"{target.name}.old"
        if old.exists() and not target.exists():
            (new if new.exists() else old).rename(target)
        shutil.rmtree(workplace, ignore_errors=True)
        unlock(descriptor)
