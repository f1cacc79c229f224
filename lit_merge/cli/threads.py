"""How many threads a command computes with, and how they wait for each other: settled before torch is loaded."""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_merge.errors import MergeError

CGROUPS = Path("/sys/fs/cgroup")
_settled: list[str] = []


def settle_threads(arguments: Sequence[str]) -> list[str]:
    """Takes `--threads N` out of the arguments, and sets what torch's libraries look at when they are loaded.

    OpenMP's threads spin while they wait. On cores that others use too, that makes a fit several times slower; then
    they wait passively. Both can be set by the user: `OMP_NUM_THREADS`, `OMP_WAIT_POLICY`.

    Raises:
        MergeError: a number of threads that is none.
    """
    rest, asked = _take_option(arguments)
    loaded = "torch" in sys.modules
    # Processes that Lightning or torchrun starts share the cores: those divide them.
    if "LOCAL_RANK" in os.environ or (loaded and asked is None):
        return rest
    count = asked or allowed_cores()
    if asked is not None or "OMP_NUM_THREADS" not in os.environ:
        _settled[:] = [f"{count} threads"]
        if loaded:
            import torch

            torch.set_num_threads(count)
        else:
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
    if not loaded and "OMP_WAIT_POLICY" not in os.environ and count > 1 and is_loaded(count):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        _settled.append("which wait passively, as other programs use these cores")
    return rest


def settled_threads() -> str:
    """What has been settled, for the log; empty where the user did."""
    return ", ".join(_settled)


def allowed_cores(groups: Path = CGROUPS) -> int:
    """As many as the affinity of this process and the quota of its control group allow, at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, math.floor(_quota(groups) + 0.5)))


def is_loaded(count: int) -> bool:
    """Whether other programs use cores that so many threads would want."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] + count > (os.cpu_count() or 1) + 0.5


def _quota(groups: Path) -> float:
    """Cores that the control group may use; a very large number where there is no limit."""
    found = 1e9
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in own:
        _, controllers, path = line.split(":", 2)
        place = groups / path.strip("/") if not controllers else groups / controllers / path.strip("/")
        # A limit of a group above holds too.
        for folder in (place, *place.parents):
            if not folder.is_relative_to(groups):
                break
            found = min(found, _limit(folder))
    return found


def _limit(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota.strip() != "max" and int(quota) > 0 else 1e9
    except (OSError, ValueError):
        return 1e9


def _take_option(arguments: Sequence[str]) -> tuple[list[str], int | None]:
    rest, asked, waiting = [], None, False
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if waiting or (name == "--threads" and separator):
            value, waiting = (argument if waiting else value), False
            if not value.isdecimal() or int(value) < 1:
                raise MergeError(f"--threads {value}: expected the number of threads, at least 1")
            asked = int(value)
        elif name == "--threads":
            waiting = True
        else:
            rest.append(argument)
    if waiting:
        raise MergeError("--threads: expected the number of threads, at least 1")
    return rest, asked
