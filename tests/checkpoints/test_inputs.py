"""No output is, holds or lies above what a command reads."""

import os
from pathlib import Path

import pytest

from lit_merge import MergeError
from lit_merge.checkpoints.inputs import check_apart, lists, one_command, reads, writes
from lit_merge.experts.decompositions import Decompositions


@pytest.fixture
def read(tmp_path: Path) -> Path:
    """An input, models/e.safetensors; `link` leads to its folder, `name` is a second name of it."""
    path = tmp_path / "models" / "e.safetensors"
    path.parent.mkdir()
    path.write_text("weights")
    (tmp_path / "link").symlink_to("models")
    os.link(path, tmp_path / "name")
    (tmp_path / "to it").symlink_to(path)
    return path


@pytest.mark.parametrize(
    "output", ["models/e.safetensors", "models", ".", "link", "link/e.safetensors", "name", "to it"]
)
def test_what_would_be_replaced(output: str, read: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="read, and would be replaced"):
        check_apart(tmp_path / output, [read])
    for first, then in ((reads, writes), (writes, reads)):  # whichever is known first
        paths = {reads: read, writes: tmp_path / output}
        with one_command():
            first(paths[first])
            with pytest.raises(MergeError, match="read, and would be replaced"):
                then(paths[then])


def test_an_input_that_is_a_link_counts_as_what_it_leads_to(read: Path, tmp_path: Path) -> None:
    for place in (read, tmp_path / "to it"):
        with pytest.raises(MergeError, match="read, and would be replaced"):
            check_apart(place, [tmp_path / "to it"])


def test_what_is_apart(read: Path, tmp_path: Path) -> None:
    for output in ("models/other.safetensors", "models2", "link2", "models/e"):
        with one_command():
            reads(read)
            writes(tmp_path / output)
    reads(read)
    writes(read)  # of two commands
    with one_command():
        writes(tmp_path / "new")
        reads(tmp_path / "new")  # what is not there yet is none of the inputs


def test_nothing_is_written_where_everything_is_read(read: Path, tmp_path: Path) -> None:
    for output in ("models/new.safetensors", "link/new", "models/deep/new"):
        with one_command():
            lists(read.parent)
            with pytest.raises(MergeError, match="the next run would take it for an input"):
                writes(tmp_path / output)


def test_one_place_is_not_for_two_outputs(tmp_path: Path) -> None:
    with one_command():
        writes(tmp_path / "out")
        writes(tmp_path / "out")  # looked at early, and again
        with pytest.raises(MergeError, match="out is named for the output and for the decompositions: choose another"):
            Decompositions(tmp_path / "out")
        with pytest.raises(MergeError, match=r"lies in .*out, which is replaced as a whole"):
            Decompositions(tmp_path / "out" / "kept")
        (tmp_path / "experts").mkdir()
        lists(tmp_path / "experts")
        with pytest.raises(MergeError, match=r"kept lies in .*experts, all of which is read"):
            Decompositions(tmp_path / "experts" / "kept")


def test_outputs_do_not_lie_in_each_other(tmp_path: Path) -> None:
    for first, then in (("run", "run/small"), ("run/small", "run")):
        with one_command():
            writes(tmp_path / first)
            with pytest.raises(MergeError, match=r"small lies in .*run, which is replaced as a whole"):
                writes(tmp_path / then)
