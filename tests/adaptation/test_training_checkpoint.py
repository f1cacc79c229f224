"""Training checkpoints that were cut or edited: refused before anything is taken from them."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_merge import MergedModel, MergeError
from lit_merge.adaptation.training_checkpoint import read_training_checkpoint
from lit_merge.cli.main import main


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint") / "step.ckpt"


@pytest.fixture
def path(whole: Path, make_model: Callable[..., MergedModel], make_trainer: Callable[..., Any], tiny: Any) -> Path:
    if not whole.exists():
        trainer = make_trainer(max_steps=1)
        trainer.fit(make_model(), datamodule=tiny.data())
        trainer.save_checkpoint(whole)
    return whole


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of everything in a nested state but the thousands of numbers of random states."""
    if place:
        yield place
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*place, key))
    elif isinstance(value, list) and len(value) < 10:
        for i, one in enumerate(value):
            yield from leaves(one, (*place, i))


def edited(state: dict[str, Any], place: tuple[Any, ...], how: Callable[[Any], Any] | None) -> dict[str, Any]:
    found = copy.deepcopy(state)
    inner: Any = found
    for key in place[:-1]:
        inner = inner[key]
    if how is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = how(inner[place[-1]])
    return found


def nan(value: Tensor) -> Tensor:
    return torch.full_like(value, float("nan")) if value.is_floating_point() else value - 1


def test_every_edit_is_seen(path: Path, tmp_path: Path) -> None:
    state = torch.load(path, weights_only=True)
    assert read_training_checkpoint(path)["global_step"] == 1
    other = tmp_path / "other.ckpt"
    edits = [(place, None) for place in leaves(state)] + [(place, lambda value: "x") for place in leaves(state)]
    for name, value in state["state_dict"].items():
        edits += [
            (("state_dict", name), how)
            for how in (nan, lambda v: v.flatten()[:1].expand(2), lambda v: v.short(), lambda v: v[None])
        ]
        assert isinstance(value, Tensor)
    for place, how in edits:
        torch.save(edited(state, place, how), other)
        with pytest.raises(MergeError, match=r"other.ckpt (was cut or changed|is no checkpoint of a fit)"):
            read_training_checkpoint(other)
    data = path.read_bytes()
    for cut in (b"", data[:100], data[: len(data) // 2], data[:-1], b"x" * 1000):
        other.write_bytes(cut)
        with pytest.raises(MergeError, match="is no checkpoint of a fit"):
            read_training_checkpoint(other)


def test_one_line_from_the_verbs(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(path, weights_only=True)
    state["state_dict"]["coefficients.offset"][0] = float("nan")
    torch.save(state, tmp_path / "other.ckpt")
    for arguments in (
        ["test", "--ckpt_path"],
        ["predict", "--output", str(tmp_path / "p.csv"), "--ckpt_path"],
        ["inspect"],
    ):
        assert main([*arguments, str(tmp_path / "other.ckpt")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "other.ckpt was cut or changed after a fit wrote it: take another checkpoint, or fit anew" in line
