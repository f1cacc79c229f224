"""Loggers and the log of the coefficients, in a folder that has its name at the end only."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_merge import CoefficientLog, MergedModel, MergeError
from lit_merge.adaptation.run import run_fit
from lit_merge.adaptation.run_logs import log_into
from lit_merge.adaptation.trainer import Trainer
from lit_merge.adaptation.unfinished_fit import UnfinishedFit

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]


def steps(path: Path) -> int:
    return len(list(csv.DictReader(path.read_text().splitlines())))


def test_places_inside_and_outside_the_run(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loggers = [CSVLogger("run/inside", name="csv"), CSVLogger("logs", name="csv")]
    run_fit(make_trainer(max_steps=2, logger=loggers), make_model(), tiny.data(), "run")
    assert steps(tmp_path / "run" / "inside" / "csv" / "version_0" / "metrics.csv") == 2
    assert steps(tmp_path / "logs" / "csv" / "version_0" / "metrics.csv") == 2
    assert {path.name for path in (tmp_path / "run" / "coefficients").iterdir()} == {
        "coefficients_log.csv",
        *(f"coefficients_{when}.{suffix}" for when in ("start", "end") for suffix in ("png", "svg")),
    }
    assert {path.name for path in tmp_path.iterdir()} == {"run", "logs"}


def test_tensorboard_inside_the_run(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = make_trainer(max_steps=2, logger=TensorBoardLogger(tmp_path / "run", name="board", version=""))
    log = CoefficientLog(0, figures=False)
    trainer.callbacks.append(log)
    run_fit(trainer, make_model(), tiny.data(), tmp_path / "run")
    events = module.EventAccumulator(str(tmp_path / "run" / "board"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss/alpha")] == [0, 1]
    # The one that was asked for, not a second one.
    assert [path.name for path in (tmp_path / "run" / "coefficients").iterdir()] == ["coefficients_log.csv"]


class Elsewhere(Logger):
    def __init__(self, save_dir: str) -> None:
        self.place = save_dir

    name = "elsewhere"
    version = "0"

    @property
    def save_dir(self) -> str:
        return self.place

    def log_metrics(self, metrics: Any, step: Any = None) -> None: ...

    def log_hyperparams(self, params: Any) -> None: ...


def test_other_loggers(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    with UnfinishedFit(tmp_path / "run", {"some": "plan"}) as unfinished:
        for place, refused in ((tmp_path / "run" / "x", True), (tmp_path / "running", False)):
            trainer = make_trainer(logger=Elsewhere(str(place)))
            if refused:
                with pytest.raises(MergeError, match=r"Elsewhere writes to .* choose another"):
                    log_into(trainer, tmp_path / "run", unfinished)
            else:
                log_into(trainer, tmp_path / "run", unfinished)
                assert trainer.loggers[0].save_dir == str(place)
        saves = make_trainer(callbacks=[ModelCheckpoint(tmp_path / "run" / "steps")], enable_checkpointing=True)
        with pytest.raises(MergeError, match=r"ModelCheckpoint writes to .*steps, in the folder that the run replaces"):
            log_into(saves, tmp_path / "run", unfinished)
