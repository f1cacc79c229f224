"""What killed processes leave behind: locks end with their process and tell its leftovers from a living one's work."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lit_merge.checkpoints.json_text import parse_sealed, sealed
from lit_merge.checkpoints.lasting import sync_folders
from lit_merge.checkpoints.own import check_own
from lit_merge.errors import MergeError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and leftovers stay
    fcntl = None  # type: ignore[assignment]

# Never a name that a user would give.
SUFFIX = ".writing"
UNFINISHED = ".unfinished"
# In an unfinished folder: which file or folder is about to be put in the output's place.
PLACED = "placed.json"
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
        OSError: it is a link.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It may have been removed between the two: then the lock is on nothing.
        if not os.path.samestat(os.fstat(descriptor), os.lstat(folder)):
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
    moved away and not yet replaced. What an unfinished output may be gone on with from stays."""
    with suppress(OSError):
        for entry in list(os.scandir(target.parent)):
            if entry.name == f".{target.name}{UNFINISHED}" or (
                entry.name.startswith(f".{target.name}.") and entry.name.endswith(SUFFIX)
            ):
                _clear(Path(entry.path), target)


def _clear(workplace: Path, target: Path) -> None:
    try:
        # A link, or what another user has put there, is nothing that was left behind.
        check_own(workplace)
        if not (is_workplace(workplace) or _is_placed(workplace, target)):
            return  # even a lock of a moment could keep another command from it
        descriptor = lock(workplace)
    except (OSError, MergeError):
        return
    if descriptor is None:
        return
    if is_workplace(workplace):
        # A folder is moved away only when the new one is whole.
        new, old = workplace / target.name, workplace / f"{target.name}.old"
        if old.exists() and not os.path.lexists(target):
            (new if new.exists() else old).rename(target)
    shutil.rmtree(workplace, ignore_errors=True)
    unlock(descriptor)


def clear_workplaces(folder: Path) -> None:
    """Removes what killed processes left in a folder, whatever they wrote there."""
    for workplace in list(folder.rglob(f".*{SUFFIX}")):
        with suppress(OSError, MergeError):
            check_own(workplace)
            descriptor = lock(workplace)  # nobody else is writing there
            shutil.rmtree(workplace, ignore_errors=True)
            unlock(descriptor)


def note_placed(folder: Path, new: Path) -> None:
    """Notes in an unfinished folder what is about to be put in the output's place: after that it is of no use."""
    found = new.stat()
    with open(folder / PLACED, "w", encoding="utf-8") as file:
        file.write(sealed({"placed": [found.st_ino, found.st_mtime_ns]}))
        file.flush()
        # It must not be lost where the output is not.
        os.fsync(file.fileno())
    sync_folders(folder)


def _is_placed(folder: Path, target: Path) -> bool:
    try:
        found, content = target.stat(), (folder / PLACED).read_bytes()
    except OSError:
        return False
    try:
        return bool(parse_sealed(content)["placed"] == [found.st_ino, found.st_mtime_ns])
    except (ValueError, LookupError):
        # It was changed since: nobody can say any more that the folder is of use, and without it work is repeated.
        return True


def remove_whole(folder: Path, target: Path) -> None:
    """Removes an unfinished folder of `target`. A kill meanwhile leaves it under the name of a leftover, which the next
    command removes, and never half of it under its own."""
    gone = target.parent / f".{target.name}.{os.getpid()}{SUFFIX}"
    try:
        folder.rename(gone)
    except OSError:
        gone = folder
    shutil.rmtree(gone, ignore_errors=True)


def is_workplace(folder: Path) -> bool:
    """Whether this is a folder in which an output is written until it is whole."""
    return folder.name.startswith(".") and folder.name.endswith(SUFFIX)


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder, and those above it that are missing; answers what was made, the innermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders that were made for what did not come to be; those that hold something stay."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
