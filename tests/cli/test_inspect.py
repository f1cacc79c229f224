"""The verb inspect, on files of every kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_merge import CART, MergedModel, Stage
from lit_merge.cli.main import main
from lit_merge.report.weight_tree import collapsed


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


def test_blocks_that_are_alike_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {f"h.{i}.w": (4, 4) for i in range(12)} | {"h.5.w": (4, 5), "h.7.extra": (1,), "top": ()}
    path = tmp_path / "a[1].safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    shown = run(capsys, str(path))
    assert str(path) in shown
    assert f"{len(shapes)} weights, 198 parameters" in shown
    lines = [line.strip("│├└─ ") for line in shown.splitlines()]
    stacks = [line for line in lines if line[:1].isdigit() and "parameters" in line and "weights" not in line]
    assert stacks == [
        "0 … 4 (5 alike)  80 parameters",
        "5  20 parameters",
        "6  16 parameters",
        "7  17 parameters",
        "8 … 11 (4 alike)  64 parameters",
    ]
    assert "top  a number  float32" in lines
    assert run(capsys, str(path), "--all").count("4 × 4  float32") == 11
    assert "4 × 4" not in run(capsys, str(path), "--depth", "1")
    found = json.loads(run(capsys, str(path), "--json"))
    assert found["h.5.w"] == {"shape": [4, 5], "dtype": "float32"}
    assert found.keys() == shapes.keys()


def test_a_bank(tmp_path: Path, make_model: Callable[..., MergedModel], capsys: pytest.CaptureFixture[str]) -> None:
    bank = make_model(CART(rank_ratio=0.25, scaling=1.5)).to_bank()
    bank.save(tmp_path / "bank")
    shown = run(capsys, str(tmp_path / "bank"))
    assert "CART(rank_ratio=0.25, scaling=1.5, matrices=block)" in shown
    assert "alpha  1.500, 1.500 to 1.500" in shown
    assert f"{len(bank.origin)} weights, {len(bank.layers)} with deltas, {len(bank.ranks)} of low rank" in shown
    assert f"rank {max(bank.ranks.values())}" in shown
    assert "dense delta" in shown
    found = json.loads(run(capsys, str(tmp_path / "bank"), "--json"))
    assert found.keys() == bank.tensors().keys()


def test_a_run_and_its_training_checkpoint(
    tmp_path: Path,
    make_model: Callable[..., MergedModel],
    make_trainer: Callable[..., Any],
    tiny: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make_model(stages=(Stage("tied", 1, 0.1), Stage("layer", 3, 0.1)))
    trainer = make_trainer(max_steps=2)
    trainer.fit(model, datamodule=tiny.data())
    trainer.save_checkpoint(tmp_path / "step.ckpt")
    shown = run(capsys, str(tmp_path / "step.ckpt"))
    assert "step 2, stage 2 (layer)" in shown
    assert model.bank.fingerprint in shown

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    (folder / "table.txt").write_text("the table [of it]\n")
    model.to_bank().save(folder / "bank")
    shown = run(capsys, str(folder))
    assert "the table [of it]" in shown
    assert "a run of fit" in shown
    assert "task bank, CART" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.safetensors"], "no such file"),
        (["text.txt"], "text.txt"),
        (["--deep", "text.txt"], "inspect: unrecognized arguments: --deep"),
        (["text.txt", "--depth", "-1"], "expected 0 or more"),
        ([], "path"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no weights")
    assert main(["inspect", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_patterns() -> None:
    names = ["a.0.w", "a.1.w", "a.10.w", "b"]
    assert collapsed(names) == {"a.#.w": names[:3], "b": ["b"]}
