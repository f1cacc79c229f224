"""What a training checkpoint holds beside the coefficients: which data, and the random states of all processes."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_merge.data import TaskData
from lit_merge.errors import MergeError
from lit_merge.random_state import every_random_state


def fit_state(trainer: Trainer, device: torch.device) -> dict[str, Any]:
    """For a checkpoint. All processes call it together."""
    return {"data": _fingerprint(trainer), "random": every_random_state(device)}


def own_random_state(state: dict[str, Any], trainer: Trainer) -> dict[str, Any] | None:
    """The random state with which this process goes on; None where there is none: another number of processes draws
    other numbers in any case.

    Raises:
        MergeError: a fit on other data than the checkpoint's.
    """
    if trainer.state.fn != "fit":
        return None  # what is tested may be other data
    before, now = state.get("data"), _fingerprint(trainer)
    if None not in (before, now) and before != now:
        raise MergeError("this checkpoint belongs to a fit on other data: pass the data that it was adapted on")
    states = state.get("random", [])
    return states[trainer.global_rank] if len(states) == trainer.world_size else None


def _fingerprint(trainer: Trainer) -> str | None:
    data = getattr(trainer, "datamodule", None)
    return data.fingerprint if isinstance(data, TaskData) else None
