"""The hidden folder of an output that is not finished: whose it is, what stays of it, and what goes on."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from lit_merge import MergeError
from lit_merge.checkpoints.outputs import check_output
from lit_merge.checkpoints.unfinished import UnfinishedOutput, discard, unfinished_folder
from lit_merge.merge.resuming import resuming

PLAN = {"stages": [1, 2], "seed": None}


class Killed(BaseException):
    """Stands for a kill in tests within one process."""


def made(output: Path, error: BaseException | None, **options: bool) -> list[str]:
    """What is left of an output on which work ends with this error, or with none."""
    with suppress(Killed, ValueError), UnfinishedOutput(output, **options) as unfinished:
        unfinished.begin(PLAN)
        (unfinished.folder / "half").touch()
        if error is not None:
            raise error
    return sorted(path.name for path in unfinished_folder(output).glob("*"))


def test_a_kill_while_it_is_removed_leaves_what_the_next_command_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, **_: bool) -> None:
        (folder / "plan.json").unlink()
        raise Killed

    with suppress(Killed), monkeypatch.context() as patch, UnfinishedOutput(tmp_path / "out") as unfinished:
        unfinished.begin(PLAN)
        (unfinished.folder / "half").touch()
        patch.setattr(shutil, "rmtree", killed)
    unfinished.release()  # as the end of a process does
    assert [path.name for path in tmp_path.glob("*/*")] == ["half"]
    check_output(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_stays(tmp_path: Path) -> None:
    for error, shared, left in (
        (None, False, []),
        (None, True, []),
        (ValueError("broken"), False, []),
        (ValueError("broken"), True, ["failed", "half", "plan.json"]),
        (Killed(), False, ["half", "plan.json"]),
        (Killed(), True, ["half", "plan.json"]),
    ):
        output = tmp_path / f"{error}-{shared}"
        assert made(output, error, shared=shared) == left
        discard(output)
        assert unfinished_folder(output).exists() == (left == ["half", "plan.json"])


def test_only_a_plan_that_is_alike_goes_on(tmp_path: Path) -> None:
    made(tmp_path / "out", Killed())
    unfinished = UnfinishedOutput(tmp_path / "out")
    assert unfinished.goes_on(PLAN)
    assert unfinished.goes_on({"stages": [1, 2], "sharpness": 0.0})  # an option that is newer than the folder, and off
    for other, names in ((PLAN | {"stages": [1]}, "stages"), ({"new": "x", "seed": 1}, "new, seed, stages")):
        with pytest.raises(MergeError, match=rf"out.unfinished holds .* with other {names}: pass --overwrite"):
            unfinished.goes_on(other)
        assert not unfinished.goes_on(other, overwrite=True)
    unfinished.begin({"stages": [1]})
    assert [path.name for path in unfinished.folder.iterdir()] == ["plan.json"]
    (unfinished.folder / "plan.json").write_text("{")
    with pytest.raises(MergeError, match=r"plan.json is damaged: remove .*out.unfinished to start afresh"):
        unfinished.goes_on(PLAN)
    with pytest.raises(MergeError, match=r"another process is at work on .*out: wait, or choose another place"):
        UnfinishedOutput(tmp_path / "out")
    unfinished.release()
    UnfinishedOutput(tmp_path / "out").release()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """Its name can be known beforehand, by anybody who can write next to the output."""
    mine = tmp_path / "my documents"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    unfinished_folder(tmp_path / "out").symlink_to(mine)
    with pytest.raises(MergeError, match=r"out.unfinished is a link, or another user's: remove it"):
        UnfinishedOutput(tmp_path / "out")
    with pytest.raises(MergeError, match=r"out.unfinished is a link"), resuming(tmp_path / "out", None):
        pass
    discard(tmp_path / "out")
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes folders of others")
def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    folder = unfinished_folder(tmp_path / "out")
    folder.mkdir()
    try:
        os.chown(folder, 12345, -1)
    except PermissionError:
        pytest.skip("this root may not")
    with pytest.raises(MergeError, match="another user's"):
        UnfinishedOutput(tmp_path / "out")


def test_links_inside_and_leftovers_of_killed_writers(tmp_path: Path) -> None:
    made(tmp_path / "out", Killed())
    folder = unfinished_folder(tmp_path / "out")
    (folder / ".plan.json.abc.writing").mkdir()
    (tmp_path / "thesis").write_text("years of work")
    (folder / "finished-1-0.jsonl").symlink_to(tmp_path / "thesis")
    for _ in range(2):
        with pytest.raises(MergeError, match=r"finished-1-0\.jsonl is a link"):
            UnfinishedOutput(tmp_path / "out")
    (folder / "finished-1-0.jsonl").unlink()
    UnfinishedOutput(tmp_path / "out").release()
    assert sorted(path.name for path in folder.iterdir()) == ["half", "plan.json"]
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_a_refused_command_leaves_no_folder(tmp_path: Path) -> None:
    UnfinishedOutput(tmp_path / "deep" / "out").release()
    assert list(tmp_path.iterdir()) == []
