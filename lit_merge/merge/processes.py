"""The processes of one merge: which of them this is, what its share of the weights is, and waiting for the others."""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch

from lit_merge.errors import MergeError

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
    if accelerator not in ("cpu", "gpu"):
        raise MergeError(f"accelerator={accelerator!r}: expected cpu or gpu")
    if accelerator == "gpu" and (there := torch.cuda.device_count()) < devices:
        raise MergeError(f"accelerator=gpu with devices={devices}: this machine has {there} GPUs for PyTorch")


def is_started() -> bool:
    """Whether something has started this process as one of several: `supervise`, or torchrun."""
    return "LOCAL_RANK" in os.environ


def connect(devices: int = 1, accelerator: Accelerator = "cpu") -> Processes:
    """This process with the others of its merge, by Lightning Fabric.

    Args:
        devices: number of processes, which run already where it is more than one.
        accelerator: `cpu`, or `gpu` for a GPU for each.

    Raises:
        MergeError: as `check_devices`.
    """
    check_devices(devices, accelerator)
    if devices == 1 and accelerator == "cpu":
        return ALONE
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment
    from lightning.fabric.strategies import DDPStrategy

    if devices == 1:
        return Processes(device=Fabric(accelerator=accelerator, devices=1).device)
    if WORKER in os.environ:
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
    plugins = LightningEnvironment() if WORKER in os.environ else None
    fabric = Fabric(accelerator=accelerator, devices=devices, strategy=DDPStrategy(timeout=PATIENCE), plugins=plugins)

    def together(step: Callable[[], None]) -> None:
        try:
            step()
        except RuntimeError as error:
            # Connections to a process that died; the one that started all says so.
            raise SystemExit(LOST) from error
        except ValueError as error:
            raise MergeError(f"devices={devices}: {error}") from error

    together(fabric.launch)
    return Processes(fabric.global_rank, fabric.world_size, fabric.device, lambda: together(fabric.barrier))


def _end_with_supervisor() -> None:
    """Ends this process when standard input does: nobody would put together what it finishes."""
    # Not by sys.stdin, whose lock the end of an interpreter waits for.
    while os.read(0, 1):
        pass
    sys.stderr.flush()
    os._exit(LOST)
