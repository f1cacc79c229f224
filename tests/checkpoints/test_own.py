"""What is this user's own, and what leads elsewhere."""

import os
from pathlib import Path

import pytest

from lit_merge import MergeError
from lit_merge.checkpoints.own import check_all_own, check_own, own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, inner/plan, next to somebody's thesis."""
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / "state" / "inner").mkdir(parents=True)
    (tmp_path / "state" / "inner" / "plan").write_text("{}")
    return tmp_path / "state"


def test_what_is_real_is_opened(folder: Path) -> None:
    folder.chmod(0o777)
    check_all_own(folder)
    assert folder.stat().st_mode & 0o777 == 0o700  # from now on nobody else puts anything into it
    with open(folder / "inner" / "plan", opener=own) as file:
        assert file.read() == "{}"
    with pytest.raises(FileNotFoundError), open(folder / "none", opener=own):
        pass
    with open(folder / "new", "w", opener=own) as file:
        file.write("new")
    assert (folder / "new").read_text() == "new"


@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "pipe", "folder"])
def test_what_leads_elsewhere_is_refused(kind: str, folder: Path) -> None:
    place, thesis = folder / "inner" / "journal", folder.parent / "thesis"
    if kind == "hard link":
        os.link(thesis, place)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.symlink_to(folder.parent, target_is_directory=True)
    else:
        place.symlink_to(thesis if kind == "link" else folder / "nothing")
    with pytest.raises(MergeError, match="journal is a link, or another user's: remove it"):
        check_all_own(folder)
    if kind != "hard link":
        with pytest.raises(MergeError, match="journal is a link"):
            check_own(place)
        with pytest.raises(MergeError, match="journal is a link"), open(place, "a", opener=own):
            pass
    assert thesis.read_text() == "years of work"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes files of others")
def test_another_users_file(folder: Path) -> None:
    os.chown(folder / "inner" / "plan", 12345, -1)
    for check in (check_own, lambda path: own(str(path), os.O_RDONLY)):
        with pytest.raises(MergeError, match="another user's"):
            check(folder / "inner" / "plan")
