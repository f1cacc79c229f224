"""What a machine without power must not lose: the disk holds an output before it gets its name."""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def settle(new: Path, target: Path) -> None:
    """Has the disk keep a file, or a folder with all that is in it. What has a counterpart at `target`, which it is
    about to replace, gets its mode, group and owner, as far as this user may give them.

    Raises:
        OSError: the disk is full, or fails.
    """
    for folder, _, files in os.walk(new, topdown=False):
        for place in (*(Path(folder, name) for name in files), Path(folder)):
            _settle(place, target / place.relative_to(new))
    if not new.is_dir():
        _settle(new, target)


def keep(folder: Path) -> None:
    """Has the disk keep all that is in a folder, as it is.

    Raises:
        OSError: the disk is full, or fails.
    """
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync_file(Path(place, name))
        _sync_folder(Path(place))


def sync_folders(parent: Path, made: Iterable[Path] = ()) -> None:
    """Has the disk keep the names in a folder, and in those above ones that were made."""
    for folder in dict.fromkeys((parent, *(one.parent for one in made))):
        _sync_folder(folder)


def _settle(place: Path, old: Path) -> None:
    if place.is_symlink():
        return
    if place.is_dir():
        _take_over(place, old)
        _sync_folder(place)
        return
    _sync_file(place)
    _take_over(place, old)


def _sync_file(place: Path) -> None:
    descriptor = os.open(place, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    # Not every system opens folders, and not every file system keeps them when asked.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _take_over(place: Path, old: Path) -> None:
    """Gives a file or folder mode, group and owner of what it replaces, where that is of its kind."""
    try:
        found, now = old.lstat(), place.lstat()
    except OSError:
        return
    if stat.S_IFMT(found.st_mode) != stat.S_IFMT(now.st_mode):
        return
    mode = stat.S_IMODE(found.st_mode)
    with suppress(OSError):
        if (found.st_uid, found.st_gid) != (now.st_uid, now.st_gid):
            os.chown(place, -1, found.st_gid)
            os.chown(place, found.st_uid, -1)
    if place.lstat().st_gid != found.st_gid:
        mode &= ~stat.S_IRWXG  # meant for another group
    with suppress(OSError):
        place.chmod(mode)
