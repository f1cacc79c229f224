"""The guard against collapse: provoked, on healthy fits, and across a resume."""

import csv
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer

from lit_merge import (
    CART,
    CoefficientLog,
    CollapseGuard,
    MergedModel,
    MergeError,
    MergeWarning,
    ResumePoint,
    Stage,
    Suite,
    TaskArithmetic,
    TaskBank,
    build_bank,
)
from lit_merge.adaptation.run import run_fit
from lit_merge.adaptation.trainer import Trainer
from lit_merge.data.streams import ImageSource, ImageTensor
from lit_merge.networks import OpenClipImageEncoder
from lit_merge.report.coefficient_figure import coefficient_figure
from lit_merge.report.figure_files import save_figure

TASKS = ["mnist", "latin", "thai"]
Fit = Callable[..., tuple[MergedModel, CollapseGuard, list[str]]]


class OneClass(Suite):
    """A stream that shows one class of every task for a long time; the guard sees what is adapted on."""

    def unlabelled(self) -> Mapping[str, ImageSource]:
        found: dict[str, ImageSource] = {}
        for task, (source, labels) in self.labelled("validation").items():
            assert labels is not None
            found[task] = ImageTensor(source.read((labels == 0).nonzero().flatten().tolist()))
        return found


@pytest.fixture(scope="module")
def fit() -> Fit:
    """A fit of three experts of the built-in suite, real ones: their merge is worth guarding."""
    experts = {task: f"zoo:8/experts/{task}.safetensors" for task in TASKS}
    bank = build_bank(experts, method=CART(0.16, 1.0))
    network = OpenClipImageEncoder("zoo:8/network.json", "zoo:8/heads.safetensors")

    def run(
        stages: list[Stage], data: Any = None, state: Any = None, **options: Any
    ) -> tuple[MergedModel, CollapseGuard, list[str]]:
        guard = CollapseGuard(**{"every_n_steps": 4, "images": 32} | options)
        if state is not None:
            guard.load_state_dict(state)
        model = MergedModel(bank, network, stages=stages)
        trainer = LightningTrainer(
            accelerator="cpu",
            max_steps=model.total_steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[guard],
        )
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", MergeWarning)
            trainer.fit(model, datamodule=data or Suite("zoo:8", tasks=TASKS, batch_size=8))
        return model, guard, [str(one.message) for one in said if issubclass(one.category, MergeWarning)]

    return run


def test_a_healthy_fit_is_left_alone(fit: Fit) -> None:
    model, guard, said = fit([Stage("tied", 8, 0.1), Stage("layer", 4, 1e-3)])
    assert said == guard.messages == []
    assert [look["step"] for look in guard.looks] == [0, 4, 8, 12]
    assert sum(guard.looks[-1]["entropy"].values()) < sum(guard.looks[0]["entropy"].values())
    assert model.coefficients().mean() > 1.3
    assert model.trainer.callback_metrics["agreement"].item() == pytest.approx(guard.looks[-1]["mean_agreement"])


@pytest.mark.parametrize("restore", [True, False])
def test_a_rate_that_is_far_too_high(restore: bool, fit: Fit) -> None:
    model, guard, said = fit([Stage("layer", 16, 2.0)], restore=restore)
    assert any("collapses" in one for one in said), guard.looks
    assert any("predicted for" in one or "predictions changed" in one for one in said)
    # What it went back to is healthy, and the fit is over; without that it goes on, and hears of it.
    if restore:
        assert len(said) == 2
        step = int(said[-1].rpartition("step ")[2].rstrip("."))
        assert [look["step"] for look in guard.looks if look["healthy"]][-1] == step
        assert model.global_step < 16
        assert guard.state_dict()["stopped"]
        assert (model.coefficients() - 1).abs().max() < 2.0 * (step + 1)
        # A fit that was stopped stays stopped.
        again, _, _ = fit([Stage("layer", 16, 2.0)], state=guard.state_dict())
        assert again.global_step == 0
    else:
        assert model.global_step == 16
        assert not any("back to" in one for one in said)


def test_a_fit_that_goes_on_for_too_long_ends_at_its_best_look(fit: Fit) -> None:
    model, guard, said = fit([Stage("layer", 12, 1.0)], balance=0.0, churn=1.0)
    best = max(guard.looks, key=lambda look: look["mean_agreement"])
    assert best["mean_agreement"] - guard.looks[-1]["mean_agreement"] > guard.margin
    assert f"back to the coefficients of step {best['step']}" in said
    # A coefficient moves by 1 a step at most.
    assert (model.coefficients() - 1).abs().max() <= best["step"] + 1e-3


def test_a_stream_of_one_class(fit: Fit) -> None:
    data = OneClass("zoo:8", tasks=TASKS, batch_size=8)
    _, guard, said = fit([Stage("tied", 8, 0.05), Stage("layer", 16, 0.3)], data)
    assert said, [(look["balance"], look["churn"], look["mean_agreement"]) for look in guard.looks]


def test_state_survives(fit: Fit) -> None:
    _, guard, _ = fit([Stage("tied", 8, 0.05)])
    again = CollapseGuard(every_n_steps=4, images=32)
    again.load_state_dict(guard.state_dict())
    assert again.state_key == guard.state_key
    assert again.looks == guard.looks
    assert again._best() == guard._best()
    assert torch.equal(
        again._kept["best"]["state"]["coefficients.offset"], guard._kept["best"]["state"]["coefficients.offset"]
    )


def test_bad_options() -> None:
    for options in ({"every_n_steps": -1}, {"images": 0}, {"balance": 1.5}, {"margin": -0.1}):
        with pytest.raises(MergeError, match="CollapseGuard: "):
            CollapseGuard(**options)


@pytest.mark.parametrize("stops", [pytest.param(True, marks=pytest.mark.pictures), False])
def test_every_file_of_a_run_shows_what_was_kept(stops: bool, tmp_path: Path) -> None:
    tasks, steps = TASKS[:2], 4
    shares = {"balance": 1.0} if stops else {"balance": 0.0, "churn": 1.0, "margin": 0.0}
    bank = build_bank(
        {task: f"zoo:8/experts/{task}.safetensors" for task in tasks},
        "zoo:8/base.safetensors",
        method=TaskArithmetic(0.5),
    )
    network = OpenClipImageEncoder("zoo:8/network.json", "zoo:8/heads.safetensors")
    model = MergedModel(bank, network, stages=[Stage("layer", steps, 1.0)])
    # Listed after those that it must come before.
    guard = CollapseGuard(every_n_steps=2, images=16, **shares)
    options: Any = {"num_sanity_val_steps": 0, "use_distributed_sampler": False, "limit_val_batches": 0}
    options |= {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=steps,
        limit_test_batches=1,
        log_every_n_steps=1,
        callbacks=[CoefficientLog(every_n_steps=2), guard],
        **options,
    )
    with pytest.warns(MergeWarning, match="back to the coefficients of step"):
        report = run_fit(trainer, model, Suite("zoo:8", tasks=tasks, batch_size=4, eval_batch_size=4), tmp_path / "run")
    kept, run = guard._kept["healthy" if guard.stopped else "best"], tmp_path / "run"
    assert guard.stopped == stops
    assert report.kept == {"step": kept["step"], "at": trainer.global_step, "why": guard.messages[-2]}
    assert kept["step"] < trainer.global_step
    right = 0.5 + kept["state"]["coefficients.offset"].view(len(tasks), -1)
    assert torch.equal(TaskBank.load(run / "bank").coefficients, right)
    rows = list(csv.DictReader((run / "coefficients.csv").read_text().splitlines()))
    assert [float(row["adapted"]) for row in rows] == pytest.approx(right.flatten().tolist())
    log = list(csv.reader((run / "coefficients" / "coefficients_log.csv").read_text().splitlines()))
    assert [row[:2] for row in log[-2:]] == [[str(trainer.global_step), task] for task in tasks]
    assert [[float(value) for value in row[2:]] for row in log[-2:]] == [pytest.approx(row) for row in right.tolist()]
    # A step stands there once.
    assert len({(row[0], row[1]) for row in log}) == len(log)
    last = list(csv.DictReader((run / "log" / "metrics.csv").read_text().splitlines()))[-1]
    assert float(last["kept_step"]) == kept["step"]
    assert float(last["coefficient"]) == pytest.approx(right.mean().item())
    assert float(last[f"coefficient/{tasks[1]}"]) == pytest.approx(right[1].mean().item())
    said = f"step {kept['step']}"
    assert json.loads((run / "metrics.json").read_text())["kept"] == report.kept
    table = " ".join((run / "table.txt").read_text().split())
    assert f"Kept: the coefficients of {said}: {guard.messages[-2]}." in table
    note = f"those of {said} were kept, {guard.messages[-2]}"
    save_figure(coefficient_figure(replace(bank, coefficients=right), bank.coefficients, note), tmp_path / "right.png")
    drawn = run / "coefficients" / "coefficients_end.png"
    assert drawn.read_bytes() == (tmp_path / "right.png").read_bytes()


class Killed(Exception):
    pass


class KilledWhileTested(Callback):
    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        if getattr(pl_module, "label", "") == "adapted":
            raise Killed


def test_a_kill_after_the_fit_does_not_undo_it(tiny: Any, make_model: Any, make_trainer: Any, tmp_path: Path) -> None:
    def fit(run: str, *callbacks: Callback, every: int = 2) -> tuple[torch.Tensor, Any]:
        model = make_model(stages=[Stage("layer", 4, 2.0)])
        guard = CollapseGuard(every_n_steps=2, images=16, balance=0.0, churn=1.0, margin=0.0)
        point = ResumePoint(every_steps=every)
        trainer = make_trainer(max_steps=4, limit_test_batches=1, callbacks=[point, *callbacks, guard])
        run_fit(trainer, model, tiny.data(), tmp_path / run)
        return model.coefficients().detach(), json.loads((tmp_path / run / "metrics.json").read_text())

    whole, metrics = fit("whole")
    assert metrics["kept"]["step"] < 4
    # The last point is at the fit's end, and before it.
    for every in (2, 3):
        with pytest.raises(Killed):
            fit(f"killed{every}", KilledWhileTested(), every=every)
        again, resumed = fit(f"killed{every}", every=every)
        assert torch.equal(whole, again)
        assert resumed == metrics
