"""A run's folder is whole, or not there."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lit_merge import Experts, MergedModel, MergeError, Stage, TaskBank, WeightAveraging
from lit_merge.runs import run_fit
from lit_merge.trainer import Trainer

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]


class Break(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, *arguments: Any) -> None:
        raise self.error


def test_a_run(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    model, run = make_model(stages=(Stage("layer", 4, 0.05),)), tmp_path / "run"
    experts = Experts(tiny.experts, tiny.base)
    report = run_fit(make_trainer(max_steps=4), model, tiny.data(), run, experts, {"some": "config"})
    assert report.states == ["pretrained", "static", "adapted", "expert"]
    saved = json.loads((run / "metrics.json").read_text())
    assert saved["bytes"]["bank"] == sum(file.stat().st_size for file in (run / "bank").iterdir())
    assert saved["bytes"]["experts"] == sum(Path(path).stat().st_size for path in tiny.experts.values())
    rows = list(csv.DictReader((run / "coefficients.csv").read_text().splitlines()))
    bank = TaskBank.load(run / "bank")
    assert len(rows) == bank.coefficients.numel()
    for row in rows:
        value = bank.coefficients[bank.tasks.index(row["task"]), bank.layers.index(row["weight"])].item()
        assert float(row["adapted"]) == pytest.approx(value, rel=1e-7)
        assert float(row["start"]) == 1.0
    assert (run / "table.txt").read_text() == report.to_text()
    versions = json.loads((run / "versions.json").read_text())
    assert torch.__version__.startswith(versions["torch"])
    steps = list(csv.DictReader((run / "log" / "metrics.csv").read_text().splitlines()))
    assert len(steps) == 4
    assert {"loss", "loss/alpha", "coefficient"} <= set(steps[0])


@pytest.mark.parametrize("error", [RuntimeError("broken"), MergeError("broken"), SystemExit(1)])
def test_a_run_that_fails_leaves_nothing(
    error: BaseException, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=4, callbacks=[Break(error)], default_root_dir=tmp_path / "elsewhere")
    with pytest.raises(type(error)):
        run_fit(trainer, make_model(), tiny.data(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".run")]


def test_overwriting(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "old").touch()
    with pytest.raises(MergeError, match="--overwrite"):
        run_fit(make_trainer(max_steps=1), make_model(), tiny.data(), run)
    assert (run / "old").exists()
    run_fit(make_trainer(max_steps=1), make_model(), tiny.data(), run, overwrite=True)
    assert not (run / "old").exists()
    assert (run / "bank").is_dir()


def test_nothing_to_fit_is_told_at_once(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="nothing to fit"):
        run_fit(make_trainer(max_steps=1), make_model(WeightAveraging()), tiny.data(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
