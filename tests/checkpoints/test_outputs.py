"""Files appear whole or not at all."""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_merge import MergeError
from lit_merge.checkpoints import check_output, outputs, replacing, write_safetensors, write_text
from lit_merge.checkpoints.locks import clear_leftovers, lock, note_placed, unlock
from tests.forked_commands import wait_until


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), replacing(target, overwrite=True) as beside:  # noqa: PT012
        beside.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with replacing(target, overwrite=True) as beside:
            beside.mkdir()
            (beside / name).touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    with pytest.raises(MergeError, match="is a folder"):
        write_text(tmp_path / "folder", "text", overwrite=True)
    assert (tmp_path / "folder" / "mine").exists()


def test_existing_and_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MergeError, match="--overwrite"):
        check_output(tmp_path / "file")
    with pytest.raises(MergeError, match="is a file"):
        check_output(tmp_path / "file" / "inside")
    check_output(tmp_path / "new" / "deep" / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_messages_name_the_place_and_not_the_workplace(tmp_path: Path) -> None:
    with pytest.raises(MergeError) as error, replacing(tmp_path / "run") as beside:  # noqa: PT012
        beside.mkdir()
        (beside / "there").touch()
        write_text(beside / "there", "")
    assert str(tmp_path / "run" / "there") in str(error.value)


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def numbers(path: Path, i: int) -> None:
    with path.open("w") as file:
        for _ in range(50):
            file.write(f"{i}\n" * 20)
            file.flush()


def write(kind: str, target: Path, i: int) -> None:
    if kind == "safetensors":
        write_safetensors(target, {str(n): torch.full((2000,), float(i)) for n in range(20)}, overwrite=True)
        return
    with replacing(target, overwrite=True) as beside:
        if kind == "file":
            return numbers(beside, i)
        beside.mkdir()
        numbers(beside / "a", i)
        numbers(beside / "b", i)


def write_for_ever(kind: str, target: Path, begun: Path) -> None:
    """What the process does that is killed."""
    if kind == "folder in two steps":
        outputs._exchange = lambda new, target: False  # type: ignore[assignment]
    begun.touch()
    for i in range(1, 10**9):
        write(kind, target, i)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("kind", ["safetensors", "file", "folder", "folder in two steps"])
def test_killed_at_random_moments_leaves_the_old_or_the_new(kind: str, tmp_path: Path, forks: Any) -> None:
    folder, begun = tmp_path / "folder", tmp_path / "begun"
    folder.mkdir()
    target = folder / "target"
    write(kind, target, 0)
    moments = random.Random(kind)
    caught = 0
    for _ in range(20):
        process = forks.start(write_for_ever, kind, target, begun)
        wait_until(begun.exists)
        begun.unlink()
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        caught += any(folder.glob(".target.*.writing"))
        if kind == "folder in two steps":
            clear_leftovers(target)  # mends the one moment with neither
        if kind == "safetensors":
            values = torch.cat(list(load_file(target).values())).tolist()
            expected = 20 * 2000
        else:
            files = [target / name for name in "ab"] if kind.startswith("folder") else [target]
            values = [float(line) for file in files for line in file.read_text().splitlines()]
            expected = 1000 * len(files)
        assert len(set(values)) == 1
        assert len(values) == expected
    assert caught
    (folder / "other").touch()
    clear_leftovers(target)
    assert {path.name for path in folder.iterdir()} == {"target", "other"}


def test_leftovers_of_a_living_process_and_other_hidden_folders_stay(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for name in (".target.abcdefgh", ".target.unfinished", ".other.abc.writing", ".target.abc.writing"):
        (tmp_path / name).mkdir()
    with replacing(target) as first:
        first.write_text("first")
        write_text(target, "second")
        assert first.exists()
        target.unlink()
    assert target.read_text() == "first"
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"target", ".target.abcdefgh", ".target.unfinished", ".other.abc.writing"}


@pytest.mark.parametrize("whole", [True, False])
def test_a_folder_moved_away_by_a_killed_process_comes_back(whole: bool, tmp_path: Path) -> None:
    workplace = tmp_path / ".target.abc.writing"
    (workplace / "target.old").mkdir(parents=True)
    (workplace / "target.old" / "old").touch()
    if whole:
        (workplace / "target").mkdir()
        (workplace / "target" / "new").touch()
    clear_leftovers(tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new" if whole else "old"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_a_fork_does_not_keep_a_lock(tmp_path: Path) -> None:
    """As the reading processes of a DataLoader do, which outlive a killed parent for seconds."""
    held = lock(tmp_path)
    begun, goes_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(goes_on[1])
        os.write(begun[1], b".")
        os.read(goes_on[0], 1)
        os._exit(0)
    os.read(begun[0], 1)
    with pytest.raises(BlockingIOError):
        lock(tmp_path)
    unlock(held)
    unlock(lock(tmp_path))
    os.close(goes_on[1])
    assert os.waitpid(child, 0)[1] == 0
    for descriptor in (*begun, goes_on[0]):
        os.close(descriptor)


def test_mode_and_group_stay_and_new_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "old")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
        for name in ("a", "b"):
            with replacing(tmp_path / "folder", overwrite=True) as beside:
                beside.mkdir()
                (beside / "a").write_text(name)
                (beside / name).touch()
            assert (tmp_path / "folder").stat().st_mode & 0o777 == (0o750 if name == "a" else 0o700)
            (tmp_path / "folder").chmod(0o700)
            (tmp_path / "folder" / "a").chmod(0o604)
        (tmp_path / "file").chmod(0o444)
        write_text(tmp_path / "file", "new", overwrite=True)
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_text() == "new"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "folder").iterdir()}
    assert modes == {"a": 0o604, "b": 0o640}
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o444


def test_the_disk_holds_an_output_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []
    for name, find in (
        ("fsync", lambda one, *_: os.readlink(f"/proc/self/fd/{one}")),
        ("replace", lambda one, *_: one),
    ):
        done = getattr(os, name)

        def watched(*arguments: object, name: str = name, done: object = done, find: object = find) -> object:
            events.append((name, Path(str(find(*arguments))).name))  # type: ignore[operator]
            return done(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(os, name, watched)
    with replacing(tmp_path / "deep" / "run") as beside:
        beside.mkdir()
        write_text(beside / "table", "x")  # of the run, which is synced as a whole
        assert events == [("replace", "table")]
        events.clear()
    deep = [("fsync", "deep"), ("fsync", tmp_path.name)]
    assert events == [("fsync", "table"), ("fsync", "run"), ("replace", "run"), *deep]


def test_links_and_what_came_meanwhile_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(MergeError, match="is a link or a device"):
        write_text(tmp_path / "link", "new", overwrite=True)
    with pytest.raises(MergeError, match="exists"), replacing(tmp_path / "file") as beside:  # noqa: PT012
        beside.write_text("new")
        (tmp_path / "file").write_text("mine")
    assert (tmp_path / "link").read_text() == (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


def test_folders_made_for_nothing_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a" / "b" / "c"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_with_the_next_command_even_a_refused_one(tmp_path: Path) -> None:
    write_text(tmp_path / "out", "old")
    (tmp_path / ".out.abc.writing").mkdir()
    (tmp_path / ".out.unfinished").mkdir()
    with pytest.raises(MergeError, match="exists"):
        check_output(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.unfinished"}
    # A command was killed after it had put its output there, and before it removed what it could have gone on with.
    note_placed(tmp_path / ".out.unfinished", tmp_path / "out")
    with pytest.raises(MergeError, match="exists"):
        check_output(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # What says so was changed since.
    (tmp_path / ".out.unfinished").mkdir()
    note_placed(tmp_path / ".out.unfinished", tmp_path / "out")
    placed = tmp_path / ".out.unfinished" / "placed.json"
    placed.write_text(placed.read_text().replace("[", "[1", 1))
    with pytest.raises(MergeError, match="exists"):
        check_output(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_failing_disk_has_left_of_parts_is_no_part_of_the_output(tmp_path: Path) -> None:
    with replacing(tmp_path / "out") as beside:
        for left in (beside / ".part.12.writing", beside / "inner" / ".part.34.writing"):
            left.mkdir(parents=True)
            (left / "part").touch()
        (beside / "inner" / "whole").touch()
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["out", "out/inner", "out/inner/whole"]


def test_text_that_is_no_unicode(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"c\.yaml would hold /x/a\\udcff, which is no UTF-8: rename that file"):
        write_text(tmp_path / "c.yaml", "experts:\n  a: /x/" + os.fsdecode(b"a\xff") + "\n")
    assert not list(tmp_path.iterdir())


def test_what_says_that_an_output_is_in_place_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (".out.unfinished", "out"):
        (tmp_path / folder).mkdir()
    lasting, fsync = [], os.fsync

    def seen(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        lasting.append((place.name, place.is_file() and place.read_text() != ""))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    note_placed(tmp_path / ".out.unfinished", tmp_path / "out")
    assert lasting == [("placed.json", True), (".out.unfinished", False)]


def test_a_link_is_no_leftover(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "out.old").write_text("mine")
    (tmp_path / ".out.abc.writing").symlink_to("mine")
    clear_leftovers(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", ".out.abc.writing"}
    assert (tmp_path / "mine" / "out.old").exists()
