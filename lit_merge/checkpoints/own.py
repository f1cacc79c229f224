"""What goes on from an earlier command, plans, journals, caches, is trusted where it is this user's own and no link."""

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from lit_merge.errors import MergeError


def check_own(path: Path) -> os.stat_result:
    """What a folder or file is that must be this user's own, or the system's.

    Raises:
        MergeError: it is a link, another user's, or neither a folder nor a file.
        OSError: there is none.
    """
    found = path.lstat()
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)) or not _is_own(found, path.parent):
        raise _refused(path)
    return found


def check_all_own(folder: Path) -> None:
    """Closes a folder to all others, and raises MergeError where it, or anything in it, is not this user's own. A file
    with a second name counts as a link."""
    check_own(folder)
    with suppress(OSError):  # where the file system has no modes
        folder.chmod(0o700)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            found = check_own(path := Path(place, name))
            if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
                raise _refused(path)


def own(path: str, flags: int) -> int:
    """An `opener` for `open`: of a file that is this user's own, never through a link.

    Raises:
        MergeError: a link, another user's, or no file.
    """
    place = Path(path)
    with suppress(FileNotFoundError):
        check_own(place)  # before a named pipe is waited for
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise _refused(place) if error.errno == errno.ELOOP else error from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or not _is_own(found, place.parent):
        os.close(descriptor)
        raise _refused(place)
    return descriptor


def _is_own(found: os.stat_result, folder: Path) -> bool:
    if not hasattr(os, "geteuid") or found.st_uid in (os.geteuid(), 0):
        return True
    # File systems of a network may number users otherwise: what is made there has the number of this one.
    try:
        with tempfile.TemporaryFile(dir=folder) as mine:
            return os.fstat(mine.fileno()).st_uid == found.st_uid
    except OSError:
        return False


def _refused(path: Path) -> MergeError:
    return MergeError(f"{path} is a link, or another user's: remove it, or choose another place")
