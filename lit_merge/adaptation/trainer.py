"""Lightning's Trainer, as this package uses it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch

from lit_merge.adaptation.options import Adaptation
from lit_merge.errors import MergeError


class Trainer(pl.Trainer):
    """Lightning's, which does not declare that its callbacks are a list that may be changed."""

    callbacks: list[pl.Callback]


@contextmanager
def passing_interrupts() -> Iterator[None]:
    """Around Lightning's verbs: Ctrl-C stays a KeyboardInterrupt. Lightning makes it an exit with code 1 and without a
    word, and ignores every later one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
        raise


def check_precision(trainer: pl.Trainer, dtype: torch.dtype, options: Adaptation) -> None:
    """Raises MergeError where the trainer's precision or accumulation does not go with how a model steps.

    Steps of coefficients would be lost in bfloat16; gradients that a step computes itself would not be scaled; forwards
    of weights in float64, the merge's `dtype`, are never cast.
    """
    if trainer.precision in ("bf16-true", "16-true"):
        precision = trainer.precision.removesuffix("true") + "mixed"
        raise MergeError(f"precision={trainer.precision} would round the coefficients: use {precision}")
    if trainer.precision not in ("32-true", "64-true", "16-mixed", "bf16-mixed"):
        raise MergeError(
            f"precision={trainer.precision} changes layers whose weights are merged: use 32-true, 64-true, 16-mixed or "
            "bf16-mixed"
        )
    if dtype == torch.float64 and trainer.precision.endswith("mixed"):
        raise MergeError(
            f"precision={trainer.precision} does not go with experts in float64: use 32-true, or convert them "
            "(`convert --dtype float32`)"
        )
    if trainer.precision == "16-mixed" and options.microbatch == "task":
        raise MergeError("microbatch=task runs its own backward, which 16-mixed would have to scale: use bf16-mixed")
    if options.sharpness and trainer.accumulate_grad_batches != 1:
        raise MergeError("sharpness takes two backwards of one batch: leave accumulate_grad_batches at 1")
