"""ResumePoint: the checkpoint from which the same `fit` command goes on."""

import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_merge.checkpoints import replacing
from lit_merge.checkpoints.lasting import keep
from lit_merge.errors import MergeError

# Ends the name of a checkpoint whose step is not in the log yet.
WAITING = ".waiting"


class ResumePoint(Callback):
    """Writes a training checkpoint of a few kB, whole or not at all, over the one before.

    `run_fit`, and so `fit`, adds it and says where: a run that was killed goes on from it. A fit that is over before
    the first one is due is repeated instead.

    Args:
        every_seconds: how much of a fit a kill may cost.
        every_steps: count optimiser steps instead.

    Raises:
        MergeError: an interval that is not above 0; a fit without `run_fit`, or whose processes do not all see the same
            folder.
    """

    def __init__(self, every_seconds: float = 30.0, every_steps: int | None = None) -> None:
        if not 0 < every_seconds < math.inf or (every_steps is not None and every_steps < 1):
            raise MergeError(f"ResumePoint: every_seconds={every_seconds}, every_steps={every_steps}: expected above 0")
        self.every_seconds, self.every_steps = every_seconds, every_steps
        self.path: Path | None = None
        self.begins: int | None = None
        """The step to go on from, as this process has read it."""
        self._time, self._seen = 0.0, 0
        self._written = False
        self._waiting: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.path is None:
            raise MergeError("ResumePoint works within run_fit: elsewhere take Lightning's ModelCheckpoint")
        alike = trainer.strategy.broadcast(self.begins) == self.begins
        if not trainer.strategy.reduce_boolean_decision(alike):
            raise MergeError(f"{self.path.parent}: not every process sees this folder: choose a --run that all share")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._time, self._seen = time.monotonic(), trainer.global_step
        self._written = self.begins is not None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        stepped, self._seen = trainer.global_step > self._seen, trainer.global_step
        # Between two batches of one step the gradients summed so far would be lost.
        if not stepped:
            return
        if self.every_steps is None:
            # Clocks differ between processes, which save together.
            late = time.monotonic() - self._time >= self.every_seconds
            due = trainer.strategy.reduce_boolean_decision(late, all=False)
        else:
            due = trainer.global_step % self.every_steps == 0
        if due and _over(trainer):
            self._written = True  # below, once a guard has had its say
        elif due:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._written:
            self._save(trainer)
            self.put()

    def put(self) -> None:
        """Puts the checkpoint in its place: what the fit has logged until then lies in its file now, and lasts as long
        as the checkpoint does."""
        if self._waiting is None:
            return
        try:
            keep(self._waiting.parent)
            os.replace(self._waiting, self._waiting.with_name(self._waiting.name.removesuffix(WAITING)))
        except OSError as error:
            raise MergeError(f"{self._waiting} could not be written: {error.strerror}") from error
        self._waiting = None

    def _save(self, trainer: Trainer) -> None:
        assert self.path is not None
        waiting = self.path.with_name(self.path.name + WAITING)
        place = replacing(waiting, overwrite=True) if trainer.is_global_zero else nullcontext(waiting)
        usual = trainer.strategy.checkpoint_io
        trainer.strategy.checkpoint_io = _InPlace()
        try:
            with place as draft:
                trainer.save_checkpoint(draft, weights_only=False)
        finally:
            trainer.strategy.checkpoint_io = usual
        self._time, self._written = time.monotonic(), True
        self._waiting = waiting if trainer.is_global_zero else None


class LogFirst(Callback):
    """Puts checkpoints in their place once the step's line is in the log, which Lightning writes after all callbacks.

    Args:
        point: writes them.
    """

    def __init__(self, point: ResumePoint) -> None:
        self.point = point

    def on_train_batch_start(self, *_: Any) -> None:
        self.point.put()


class _InPlace(TorchCheckpointIO):
    """Lightning's own goes by way of the system's temporary folder, where a kill leaves files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)


def _over(trainer: Trainer) -> bool:
    """Whether this was the last step of all."""
    steps, epochs = trainer.max_steps, trainer.max_epochs
    last = epochs is not None and 0 < epochs <= trainer.current_epoch + 1 and trainer.is_last_batch
    return last or 0 < steps <= trainer.global_step
