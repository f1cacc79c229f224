"""CoefficientLog: the numbers and the pictures of a real fit."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_merge import CoefficientLog, IsoC, MergedModel, MergeError, Stage
from lit_merge.adaptation.trainer import Trainer

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]
LAYER = (Stage("layer", 5, 0.05),)


def read(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "coefficients_log.csv").read_text().splitlines()))


def numbers(rows: list[dict[str, str]], step: int, layers: tuple[str, ...]) -> torch.Tensor:
    return torch.tensor([[float(row[name]) for name in layers] for row in rows if row["step"] == str(step)])


@pytest.mark.pictures
def test_numbers_and_pictures(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    model, folder = make_model(stages=LAYER), tmp_path / "here"
    log = CoefficientLog(every_n_steps=2, folder=str(folder))
    make_trainer(max_steps=3, callbacks=[log]).fit(model, datamodule=tiny.data())
    rows = read(folder)
    layers = tuple(rows[0])[2:]
    assert layers == model.bank.layers
    assert [(row["step"], row["task"]) for row in rows] == [(s, t) for s in "023" for t in model.tasks]
    assert torch.equal(numbers(rows, 0, layers), torch.ones(3, len(layers)))
    torch.testing.assert_close(numbers(rows, 3, layers), model.coefficients().detach())
    assert not torch.equal(numbers(rows, 2, layers), numbers(rows, 3, layers))
    drawn = {path.name for path in folder.iterdir()} - {"coefficients_log.csv"}
    names = ("start", "step_00002", "end")
    assert drawn == {f"coefficients_{name}.{suffix}" for name in names for suffix in ("png", "svg")}


def test_start_and_end_without_pictures(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    # Without a folder: beside what the trainer logs.
    logger = CSVLogger(tmp_path, name="logs", version="one")
    trainer = make_trainer(max_steps=4, logger=logger, callbacks=[CoefficientLog(0, figures=False)])
    trainer.fit(make_model(IsoC()), datamodule=tiny.data())
    folder = tmp_path / "logs" / "one"
    assert [(row["step"], row["task"]) for row in read(folder / "coefficients")] == [("0", "all"), ("4", "all")]
    assert len(list((folder / "coefficients").iterdir())) == 1
    logged = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    for row in logged:
        assert float(row["coefficient/all"]) == pytest.approx(float(row["coefficient"]), abs=0.1)


def test_tensorboard_gets_figures_and_histograms(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, name="", version="one")
    trainer = make_trainer(max_steps=2, logger=logger, callbacks=[CoefficientLog(1)])
    trainer.fit(make_model(stages=LAYER), datamodule=tiny.data())
    events = module.EventAccumulator(str(tmp_path / "one"), size_guidance={"images": 0, "histograms": 0})
    events.Reload()
    assert [one.step for one in events.Images("coefficients")] == [0, 1, 2]
    assert events.Images("coefficients")[0].width > 500
    assert [one.step for one in events.Histograms("coefficients/beta")] == [0, 1, 2]
    assert "coefficient/gamma" in events.Tags()["scalars"]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_fit_that_goes_on_keeps_what_was_logged_before(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    folder = str(tmp_path / "log")
    save = ModelCheckpoint(tmp_path / "steps", every_n_train_steps=1, filename="{step}", save_top_k=-1)
    first = [CoefficientLog(1, folder, figures=False), save]
    make_trainer(max_steps=4, callbacks=first, enable_checkpointing=True).fit(make_model(), datamodule=tiny.data())
    before = read(tmp_path / "log")
    again = make_trainer(max_steps=5, callbacks=[CoefficientLog(1, folder, figures=False)])
    path = tmp_path / "steps" / "step=2.ckpt"
    again.fit(make_model(), datamodule=tiny.data(), ckpt_path=path, weights_only=True)
    rows = read(tmp_path / "log")
    assert [row["step"] for row in rows if row["task"] == "beta"] == list("012345")
    assert rows[: len(before)] == before


def test_mistakes(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="expected 0 or more"):
        CoefficientLog(-1)
    (tmp_path / "there").mkdir()
    log = CoefficientLog(folder=str(tmp_path / "there"))
    with pytest.raises(MergeError, match="there exists"):
        make_trainer(max_steps=1, callbacks=[log]).fit(make_model(), datamodule=tiny.data())
    with pytest.raises(MergeError, match="not on BoringModel"):
        make_trainer(max_steps=1, callbacks=[log]).fit(BoringModel())
