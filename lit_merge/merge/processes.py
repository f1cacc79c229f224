"""The processes of one merge: which of them this is, what its share of the weights is, and waiting for the others."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Literal

import torch
from torch import distributed

from lit_merge.errors import MergeError, check_between, check_choice

Accelerator = Literal["cpu", "gpu"]
# Set for processes that `supervise` starts: the folder where each leaves its error.
WORKER = "LIT_MERGE_WORKER"
# Exit code of a process that has lost the others: one of those says why.
LOST = 75
# Between the first process that has finished and the last. A death is noticed by other ways than this.
PATIENCE = timedelta(days=7)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process among those of a merge; by default the only one.

    Attributes:
        rank: from 0; the first one makes the files and puts them in their place.
        count: of all.
        device: where matrices are decomposed.
        wait: returns when all have called it.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    wait: Callable[[], None] = lambda: None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, costs: Mapping[str, float]) -> list[str]:
        """The names of this process, in their order: the costliest first, each to the process with the least to do.

        >>> Processes(1, 2).share({"a": 5, "b": 3, "c": 2, "d": 1})
        ['b', 'c', 'd']
        """
        loads, mine = [0.0] * self.count, set()
        for name in sorted(costs, key=lambda name: -costs[name]):
            least = loads.index(min(loads))
            loads[least] += costs[name]
            if least == self.rank:
                mine.add(name)
        return [name for name in costs if name in mine]


ALONE = Processes()


def check_devices(devices: int, accelerator: Accelerator) -> None:
    """Raises MergeError unless there can be so many processes."""
    if devices < 1:
        raise MergeError(f"devices={devices}: expected the number of processes, at least 1")
    # Each takes memory; more than a few for every core only cost.
    check_between("devices", devices, 1, max(64, 4 * (os.cpu_count() or 1)))
    check_choice("accelerator", accelerator, Accelerator)
    if accelerator == "gpu" and (there := torch.cuda.device_count()) < devices:
        raise MergeError(f"accelerator=gpu with devices={devices}: this machine has {there} GPUs for PyTorch")


def is_started() -> bool:
    """Whether something has started this process as one of several: `supervise`, or torchrun."""
    return "LOCAL_RANK" in os.environ


def connect(devices: int = 1, accelerator: Accelerator = "cpu") -> Processes:
    """Joins this process to the others of its merge, and waits until all are there.

    Args:
        devices: number of processes, which run already where it is more than one.
        accelerator: `cpu`, or `gpu` for a GPU for each.

    Raises:
        MergeError: there cannot be so many processes, or another number of them was started.
        SystemExit: another process died before it came; later, `wait` raises this.
    """
    check_devices(devices, accelerator)
    place = int(os.environ.get("LOCAL_RANK", 0)) if devices > 1 else 0
    device = torch.device("cuda", place) if accelerator == "gpu" else CPU
    if devices == 1:
        return Processes(device=device)
    rank, count = int(os.environ.get("RANK", place)), int(os.environ.get("WORLD_SIZE", devices))
    if count != devices:
        raise MergeError(f"devices={devices}: expected {count}, the number of processes that were started")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // devices))
    # Processes exchange no tensors, they only wait for each other: gloo does that for all devices.
    folder = os.environ.get(WORKER)
    store = distributed.FileStore(f"{folder}/processes", count) if folder else None
    meet = partial(distributed.init_process_group, "gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        _unless_lost(meet)
    except ValueError as error:
        raise MergeError(f"devices={devices}: {error}") from error
    return Processes(rank, count, device, partial(_unless_lost, distributed.barrier))


def _unless_lost(meet: Callable[[], object]) -> None:
    """Meets the other processes; ends this one where another has died, which the one that started all explains."""
    try:
        meet()
    except RuntimeError as error:
        raise SystemExit(LOST) from error
