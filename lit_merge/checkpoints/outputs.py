"""Writing without half results: everything is written next to its place and renamed when it is whole."""

import ctypes
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_merge.checkpoints.inputs import check_apart, writes
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.lasting import settle, sync_folders
from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.locks import (
    clear_leftovers,
    clear_workplaces,
    is_workplace,
    make_folders,
    make_workplace,
    remove_empty,
    unlock,
)
from lit_merge.errors import MergeError


def check_output(
    path: str | os.PathLike[str],
    overwrite: bool = False,
    kind: Kind | None = None,
    what: str = "output",
    how: str = "pass --overwrite",
) -> Path:
    """Refuses early, before any work is done, a place that cannot be written, or where something stands that must stay.
    What killed commands have left next to it is removed.

    Args:
        path: of the output.
        overwrite: replace what stands there.
        kind: what the command writes: nothing else is replaced.
        what: it is, where a command has several outputs.
        how: to replace what stands there, for people.

    Raises:
        MergeError: the path exists and `overwrite` is off; it is a link, or no output of this kind; it is an input of
            the command, or holds one; no file can be made next to it.
    """
    target = destination(path)
    _check(target, overwrite, kind, how)
    writes(target, what)
    return target


def _check(target: Path, overwrite: bool, kind: Kind | None, how: str = "pass --overwrite") -> None:
    try:
        clear_leftovers(target)
        if os.path.lexists(target):
            if not overwrite:
                raise MergeError(f"{target} exists: {how} to replace it, or choose another place")
            if target.is_symlink() or not (target.is_dir() or target.is_file()):
                raise MergeError(f"{target} is a link or a device, which is not replaced: choose another place")
            if kind is not None:
                kind.check(target)
        # Walk up to the folder that exists, so that nothing is made for a run that fails later.
        parent = target.absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise MergeError(f"{target} cannot be written: {parent} is a file")
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise MergeError(f"{target} cannot be written: {error.strerror}") from error
    check_apart(target)


def is_kept(target: Path) -> bool:
    """Whether something is there that is made once, and read from then on. What killed commands have left next to it
    is removed: no command will write it again."""
    clear_leftovers(target)
    return target.exists()


@contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = False, kind: Kind | None = None) -> Iterator[Path]:
    """Yields a fresh path next to `path` for a file or folder; renames it to `path` when the block succeeds, once the
    disk holds it. It gets mode and group of what it replaces, and else those of a new file.

    When the block fails nothing is left of it, and what stood at `path` stands there still. A killed process, or a
    machine without power, leaves the old or the new one too, and a hidden folder, `.name.….writing`, which the next
    command that writes here removes.

    Raises:
        MergeError: as `check_output`, or the disk is full.
    """
    target = destination(path)
    _check(target, overwrite, kind)
    try:
        made = make_folders(target.parent)
        workplace, lock = make_workplace(target)
    except OSError as error:
        raise MergeError(f"{target} cannot be written: {error.strerror}") from error
    new, old = workplace / target.name, workplace / f"{target.name}.old"
    try:
        yield new
        # Something else may stand there by now.
        _check(target, overwrite, kind)
        if target.is_dir() and not new.is_dir():
            raise MergeError(f"{target} is a folder, which a file does not replace: choose another place")
        # Of what is part of another output, that one takes care.
        inner = any(is_workplace(folder) for folder in target.parents)
        if not inner:
            # Of parts of it, where the disk has failed to remove them.
            clear_workplaces(new)
            settle(new, target)
        # A folder cannot be renamed over a full one.
        if not (target.is_dir() and _exchange(new, target)):
            if target.is_dir():
                target.rename(old)
            os.replace(new, target)
        if not inner:
            sync_folders(target.parent, made)
    except MergeError as error:
        # Of a file inside a folder that is being written: its place is where the folder will stand.
        raise MergeError(str(error).replace(str(new), str(target)), task=error.task, weight=error.weight) from error
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MergeError(f"{target} could not be written: {reason}; nothing was changed") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(workplace, ignore_errors=True)
        unlock(lock)
        remove_empty(made)


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


def write_text(path: str | os.PathLike[str], text: str, overwrite: bool = False, kind: Kind | None = None) -> None:
    """Writes one text file in UTF-8, whole or not at all.

    Raises:
        MergeError: as `replacing`; text that is no Unicode, as names of files may be.
    """
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        named = re.search(r"\S*[\ud800-\udfff]\S*", text)
        raise MergeError(f"{path} would hold {named and named[0]}, which is no UTF-8: rename that file") from error
    with replacing(path, overwrite, kind) as draft:
        draft.write_bytes(content)
