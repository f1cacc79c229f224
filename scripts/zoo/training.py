"""What base and experts share in training: the trainer, its end in time, and the schedule."""

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import nn

from zoo.stopping import StopPoint


class Deadline(Callback):
    """Ends training after the epoch, hence after its checkpoint, in which the stop point passes."""

    def __init__(self, stop: StopPoint) -> None:
        self._stop = stop

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Asks the trainer to stop when it is time to."""
        trainer.should_stop = trainer.should_stop or self._stop.passed()


def trainer(callbacks: Sequence[Callback] = (), **options: Any) -> L.Trainer:
    """A trainer in bf16 with a progress bar, and nothing written but the checkpoints asked for."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    return L.Trainer(
        devices=1,
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_model_summary=False,
        callbacks=[RichProgressBar(refresh_rate=5), *callbacks],
        **options,
    )


def warmed_cosine(step: int, steps: int, warmup: float) -> float:
    """The learning rate's share of its peak: a linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def clip(network: nn.Module) -> None:
    """Keeps the gradient's norm at 1 or below."""
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
