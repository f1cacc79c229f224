"""A run's folder is whole, or not there."""

import base64
import csv
import io
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from PIL import Image

from lit_merge import (
    CART,
    CollapseGuard,
    CompressionExport,
    Experts,
    ImageFolders,
    IsoC,
    MergedModel,
    MergeError,
    MergeWarning,
    RankSchedule,
    ResumePoint,
    Stage,
    TaskBank,
    WeightAveraging,
    build_bank,
)
from lit_merge.adaptation.run import run_fit
from lit_merge.adaptation.trainer import Trainer
from lit_merge.objectives import ExpertAgreement
from lit_merge.report.report import Report

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]


class Break(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, *arguments: Any) -> None:
        raise self.error


class BreakAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def check_samples(run: Path, data: Any, network: Any, bank: TaskBank, report: Report) -> None:
    """Pictures are the test images, predictions those of the bank, and every state has some."""
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {line["task"] for line in lines} == set(bank.tasks)
    weights = bank.merge(dtype=torch.float32, naming="canonical")
    for line in lines:
        source, labels = data.labelled("test")[line["task"]]
        with Image.open(io.BytesIO(base64.b64decode(line["picture"].partition(",")[2]))) as image:
            assert np.array_equal(np.asarray(image), source.read([line["index"]])[0].numpy())
        assert line["label"] == str(labels[line["index"]].item())
        assert list(line["predictions"]) == ["pretrained", "expert", "static", "adapted"]
        p = network(weights, {line["task"]: source.read([line["index"]])})[line["task"]][0].softmax(-1)
        assert line["predictions"]["adapted"] == [
            [str(row.item()), pytest.approx(value.item(), abs=1e-3)] for value, row in zip(*p.topk(3), strict=True)
        ]


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
    log = csv.DictReader((run / "log" / "metrics.csv").read_text().splitlines())
    # The guard may have gone back, and says so in a last line.
    steps = [row for row in log if not row.get("kept_step")]
    assert len(steps) == 4
    assert {"loss", "loss/alpha", "coefficient"} <= set(steps[0])

    assert {path.name for path in run.iterdir()} == {
        "accuracy.png",
        "accuracy.svg",
        "bank",
        "coefficients",
        "coefficients.csv",
        "config.yaml",
        "guard.csv",
        "log",
        "metrics.csv",
        "metrics.json",
        "samples.jsonl",
        "table.txt",
        "training.png",
        "training.svg",
        "versions.json",
        "digests.json",
    }
    assert yaml.safe_load((run / "config.yaml").read_text()) == {"some": "config"}
    assert (run / "metrics.csv").read_text() == report.to_csv()
    check_samples(run, tiny.data(), tiny.encoder(), bank, report)
    looks = list(csv.DictReader((run / "guard.csv").read_text().splitlines()))
    assert [(row["step"], row["task"]) for row in looks] == [(step, task) for step in "04" for task in tiny.tasks]
    assert all(0 <= float(row["agreement"]) <= 1 and float(row["entropy"]) > 0 for row in looks)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_the_first_objective_reached_is_scored_too(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    entropy, experts = Stage("layer", 2, 0.5), Stage("direction", 3, 0.5, objective=ExpertAgreement())
    alone = make_model(stages=(entropy,))
    run_fit(
        make_trainer(max_steps=2, callbacks=[CollapseGuard(every_n_steps=0)]), alone, tiny.data(), tmp_path / "alone"
    )
    whole = tmp_path / "whole"
    for step in (3, None):  # cut off after the objective has changed, then to the end
        model, callbacks = make_model(stages=(entropy, experts)), [ResumePoint(every_steps=1)]
        if step is not None:
            callbacks.append(BreakAt(step))
        with nullcontext() if step is None else pytest.raises(KeyboardInterrupt):
            report = run_fit(make_trainer(max_steps=5, callbacks=callbacks), model, tiny.data(), whole)
    assert report.states == ["static", "first", "adapted"]
    wanted, found, end = (
        Report.load(tmp_path / "alone").scores["adapted"],
        report.scores["first"],
        report.scores["adapted"],
    )
    assert {task: one.accuracy for task, one in found.items()} == {task: one.accuracy for task, one in wanted.items()}
    for task, one in found.items():
        assert one.entropy == pytest.approx(wanted[task].entropy, rel=1e-5) != end[task].entropy
    assert Report.load(whole).objectives == ("Entropy", "ExpertAgreement")
    heading = " ".join((whole / "table.txt").read_text().split("─")[0].split())
    assert all(word in heading for word in ("by", "entropy", "experts"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_bank_on_disk_tests_as_the_run_reported(
    dtype: torch.dtype, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    model = make_model(dtype=dtype, stages=(Stage("tied", 3, 0.5), Stage("layer", 4, 0.05)))
    schedule = RankSchedule({0: 0.5, 2: 0.25})
    run_fit(make_trainer(max_steps=7, callbacks=[schedule]), model, tiny.data(), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    bank = TaskBank.load(tmp_path / "run" / "bank")
    assert max(bank.ranks.values()) == 8
    again = MergedModel(bank, tiny.encoder())
    make_trainer().test(again, datamodule=tiny.data(), verbose=False)
    for task, score in again.scores.items():
        assert score.accuracy == saved["tasks"][task]["adapted_accuracy"]
        assert score.entropy == saved["tasks"][task]["adapted_entropy"]
    # The run counts what its adapted model gets right, not what its static merge does.
    assert any(row["adapted_entropy"] != row["static_entropy"] for row in saved["tasks"].values())


def test_static_merge_and_experts_are_measured_as_they_are(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    model = make_model()
    make_trainer().test(model, datamodule=tiny.data(), verbose=False)
    report = run_fit(make_trainer(max_steps=3), make_model(), tiny.data(), tmp_path / "run", Experts(tiny.experts))
    assert report.states == ["static", "adapted", "expert"]
    assert report.scores["static"] == model.scores
    # An expert merged with none but itself.
    for task, path in tiny.experts.items():
        with pytest.warns(MergeWarning):
            alone = MergedModel(build_bank({task: path}, method=CART()), tiny.encoder())
        make_trainer().test(alone, datamodule=tiny.data(tasks=[task]), verbose=False)
        assert alone.scores[task].accuracy == report.scores["expert"][task].accuracy


def test_without_experts_there_are_fewer_columns(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    report = run_fit(make_trainer(max_steps=1), make_model(), tiny.data(), tmp_path / "run")
    assert report.states == ["static", "adapted"]
    assert set(report.sizes) == {"bank"}
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_without_labelled_images_there_are_no_accuracies(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    data = ImageFolders(tiny.adapt_folders, batch_size=4)
    model, run = make_model(), tmp_path / "run"
    report = run_fit(make_trainer(max_steps=2), model, data, run, Experts(tiny.experts, tiny.base))
    assert report.states == []
    assert not (run / "accuracy.png").exists()
    assert json.loads((run / "metrics.json").read_text())["tasks"] == {}
    assert "no labelled test inputs" in (run / "table.txt").read_text()
    assert torch.equal(TaskBank.load(run / "bank").coefficients, model.coefficients())


def test_a_shared_delta_has_one_line_per_weight(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    run_fit(make_trainer(max_steps=1), make_model(IsoC()), tiny.data(), tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "coefficients.csv").read_text().splitlines()))
    assert {row["task"] for row in rows} == {"all"}
    assert len({row["weight"] for row in rows}) == len(rows) == len(TaskBank.load(tmp_path / "run" / "bank").layers)


class PressControlC(Callback):
    def on_train_batch_end(self, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)  # Python answers between two of its instructions: this one is enough.


def test_interrupted_run_leaves_nothing(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    # Whatever handler an earlier test has left, as libraries do that start threads or processes.
    handler = signal.default_int_handler
    signal.signal(signal.SIGINT, handler)
    exports = CompressionExport(str(tmp_path / "export"))
    trainer = make_trainer(max_steps=4, callbacks=[PressControlC(), exports], default_root_dir=tmp_path / "elsewhere")
    with pytest.raises(KeyboardInterrupt):
        run_fit(trainer, make_model(), tiny.data(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handler


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
    run_fit(make_trainer(max_steps=1), make_model(), tiny.data(), run)
    (run / "notes.txt").touch()
    for overwrite, message in ((False, "--overwrite"), (True, "notes.txt, which `lit-merge fit` did not write")):
        with pytest.raises(MergeError, match=message):
            run_fit(make_trainer(max_steps=1), make_model(), tiny.data(), run, overwrite=overwrite)
    (run / "notes.txt").unlink()
    old = (run / "versions.json").stat().st_ino
    broken = make_trainer(max_steps=4, callbacks=[Break(RuntimeError("broken"))])
    with pytest.raises(RuntimeError, match="broken"):
        run_fit(broken, make_model(), tiny.data(), run, overwrite=True)
    assert (run / "versions.json").stat().st_ino == old
    run_fit(make_trainer(max_steps=1), make_model(), tiny.data(), run, overwrite=True)
    assert (run / "versions.json").stat().st_ino != old
    assert (run / "bank").is_dir()


def test_nothing_to_fit_is_told_at_once(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="nothing to fit"):
        run_fit(make_trainer(max_steps=1), make_model(WeightAveraging()), tiny.data(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
