"""The states of all random generators: with them a fit that goes on draws what the unbroken one would have drawn."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from lit_merge.data import TaskData
from lit_merge.errors import MergeError


def random_state(device: torch.device) -> dict[str, Any]:
    """States of the generators of Python, NumPy, torch, and torch's on `device`, as `torch.load(weights_only=True)`
    reads them; a dozen kB."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    numpy = (kind, np.asarray(keys).tolist(), *rest)
    state = {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Goes on drawing from a state of `random_state`."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def every_random_state(device: torch.device) -> list[dict[str, Any]]:
    """The states of all processes by rank, in every process."""
    own = random_state(device)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, own)
    return states


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
