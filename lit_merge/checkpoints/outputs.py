"""Writing without half results: everything is written next to its place and renamed when it is whole."""

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.locks import clear_leftovers, make_workplace, unlock
from lit_merge.errors import MergeError


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Refuses early, before any work is done, a path that exists or that cannot be written.

    Raises:
        MergeError: the path exists and `overwrite` is off, or no file can be made next to it.
    """
    target = destination(path)
    try:
        if (target.exists() or target.is_symlink()) and not overwrite:
            raise MergeError(f"{target} exists: pass --overwrite to replace it, or choose another place")
        # Walk up to the folder that exists, so that nothing is made for a run that fails later.
        parent = target.absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise MergeError(f"{target} cannot be written: {parent} is a file")
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise MergeError(f"{target} cannot be written: {error.strerror}") from error
    return target


@contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yields a fresh path next to `path` for a file or folder; renames it to `path` when the block succeeds.

    When the block fails nothing is left of it, and what stood at `path` stands there still. A killed process leaves
    the old or the new one too, and a hidden folder, `.name.….writing`, which the next one that writes here removes.

    Raises:
        MergeError: as `check_output`, or the disk is full.
    """
    target = check_output(path, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target)
        workplace, lock = make_workplace(target)
    except OSError as error:
        raise MergeError(f"{target} cannot be written: {error.strerror}") from error
    new, old = workplace / target.name, workplace / f"{target.name}.old"
    try:
        yield new
        if target.is_dir() and not target.is_symlink():
            if not new.is_dir():
                raise MergeError(f"{target} is a folder, which a file does not replace: choose another place")
            # A folder cannot be renamed over a full one.
            if not _exchange(new, target):
                target.rename(old)
                os.replace(new, target)
        else:
            os.replace(new, target)
    except MergeError as error:
        # Of a file inside a folder that is being written: its place is where the folder will stand.
        raise MergeError(str(error).replace(str(new), str(target)), task=error.task, weight=error.weight) from error
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MergeError(f"{target} could not be written: {reason}; nothing was changed") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(workplace, ignore_errors=True)
        unlock(lock)


def _exchange(new: Path, target: Path) -> bool:
    """Swaps two folders in one step, so that there is no moment with neither. False where the system cannot: Linux can,
    on most file systems; elsewhere a kill between two renames is mended by `clear_leftovers`."""
    if not sys.platform.startswith("linux"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "renameat2"):
        return False
    return bool(libc.renameat2(here, os.fsencode(new), here, os.fsencode(target), exchange) == 0)


def write_text(path: str | os.PathLike[str], text: str, overwrite: bool = False) -> None:
    """Writes one text file in UTF-8, whole or not at all."""
    with replacing(path, overwrite) as draft:
        draft.write_text(text, encoding="utf-8")
