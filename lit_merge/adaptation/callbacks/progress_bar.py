"""MergeProgress: how far a fit or an evaluation is, and what is known of every task meanwhile."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lit_merge.adaptation.callbacks.collapse_guard import CollapseGuard
from lit_merge.adaptation.coefficients import by_row
from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.report.displays import Display, display
from lit_merge.report.fit_status import FitStatus, TaskStatus


class MergeProgress(ProgressBar):
    """Shows a fit as a bar over its steps and a table of its tasks on a terminal's standard error; elsewhere it says a
    line now and then, and with `--log json` an event. An evaluation is called by the `label` of its module, if any."""

    def __init__(self) -> None:
        super().__init__()
        self._display: Display | None = None
        self._on = True
        self._speed = Speed()

    def disable(self) -> None:
        """Called by the trainer in all processes but the first."""
        self._on = False

    def enable(self) -> None:
        self._on = True

    def _begin(self, what: str, total: int | float) -> None:
        if self._on:
            self._display = display(what, int(total) if 0 < total < float("inf") else 0)

    def _end(self, scores: dict[str, Any] | None = None) -> None:
        if self._display is not None:
            self._display.end(scores)
        self._display = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._speed = Speed(trainer.global_step)
        self._begin("adapting", trainer.max_steps if trainer.max_steps > 0 else 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._speed.count(batch, trainer.world_size)
        if self._display is None:
            return
        step = trainer.global_step
        wanted = self._display.wants(step) and isinstance(pl_module, MergedModel)
        self._display.update(step, self._status(trainer, pl_module) if wanted else None)  # type: ignore[arg-type]

    def _status(self, trainer: Trainer, model: MergedModel) -> FitStatus:
        step, of = trainer.global_step, max(0, trainer.max_steps)
        coefficients = model.coefficients().detach()
        rows = by_row(model.tasks, coefficients)
        looks = [one.looks[-1] for one in trainer.callbacks if isinstance(one, CollapseGuard) and one.looks]  # type: ignore[attr-defined]
        seen: Mapping[str, Any] = looks[0] if looks else {}
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        tasks = {}
        for task in model.tasks:
            values = rows[task] if task in rows else rows["all"]
            found = {name: seen[name].get(task) if seen else None for name in ("entropy", "agreement", "balance")}
            low, mean, high = spread(values)
            tasks[task] = TaskStatus(logged.get(f"loss/{task}"), **found, lowest=low, mean=mean, highest=high)
        speed, left = self._speed.now(step, of)
        return FitStatus(
            step=step,
            of=of,
            objective=logged.get("loss"),
            agreement=seen.get("mean_agreement"),
            coefficients=spread(coefficients),
            rank=model.mean_rank if model.bank.ranks else None,
            speed=speed,
            left=left,
            guard=guard_says(trainer, seen),
            tasks=tasks,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._begin("validating", sum(map(int, trainer.num_val_batches)))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.state.fn == "validate" and self._display is not None:
            self._display.update(batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._end(getattr(pl_module, "scores", None))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(getattr(pl_module, "label", "testing"), sum(map(int, trainer.num_test_batches)))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._display is not None:
            self._display.update(batch_idx + 1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(getattr(pl_module, "scores", None))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("predicting", sum(map(int, trainer.num_predict_batches)))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._display is not None:
            self._display.update(batch_idx + 1)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end()


class Speed:
    """Inputs per second since they were last asked for, and the time that is left by all steps so far."""

    def __init__(self, step: int = 0) -> None:
        self._first, self._started = step, time.monotonic()
        self._asked, self._inputs = self._started, 0

    def count(self, batch: Any, processes: int) -> None:
        if isinstance(batch, Mapping):
            self._inputs += processes * sum(len(one) for one in batch.values())

    def now(self, step: int, of: int) -> tuple[float | None, float | None]:
        """Inputs per second, and seconds left until step `of`; None where that is not known."""
        now = time.monotonic()
        speed = self._inputs / (now - self._asked) if now > self._asked else None
        self._asked, self._inputs = now, 0
        done = step - self._first
        return speed, (of - step) * (now - self._started) / done if of and done > 0 else None


def spread(values: torch.Tensor) -> tuple[float, float, float]:
    """Lowest, mean and highest."""
    return values.min().item(), values.double().mean().item(), values.max().item()


def guard_says(trainer: Trainer, seen: Mapping[str, Any]) -> str:
    """The guard's last message, or how its last look was; empty without a guard."""
    messages = [one.messages for one in trainer.callbacks if isinstance(one, CollapseGuard)]  # type: ignore[attr-defined]
    said = [message for found in messages for message in found]
    return said[-1] if said else f"healthy at step {seen['step']}" if seen else ""
