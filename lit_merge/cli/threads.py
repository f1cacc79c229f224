"""How many threads a command computes with, and how they wait for each other."""

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_merge.errors import MergeError

# Of threads that anybody asks for.
MOST = 1024
CGROUPS = Path("/sys/fs/cgroup")
_settled: dict[str, int] = {}


def settle_waiting(arguments: Sequence[str]) -> list[str]:
    """Takes `--threads N` out of the arguments, and sets what libraries look at when torch loads them.

    OpenMP's threads spin while they wait. On cores that other programs use too, that makes a fit several times slower;
    there they wait passively. Users settle both by `OMP_NUM_THREADS` and `OMP_WAIT_POLICY`.

    Raises:
        MergeError: a number of threads that is none.
    """
    rest, asked = _take_option(arguments)
    _settled.clear()
    if asked is not None:
        # As if the user had set it: then nothing divides it among processes.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(asked)
        _settled["asked"] = asked
    elif "torch" not in sys.modules and "OMP_NUM_THREADS" not in os.environ:
        _settled["threads"] = count = allowed_cores()
        if "OMP_WAIT_POLICY" not in os.environ and count > 1 and is_loaded(count):
            os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
            _settled["passive"] = True
    return rest


def settle_number() -> None:
    """Once torch is loaded: as many threads as are asked for, or as this machine allows where nobody has said."""
    count = _settled.get("asked", _settled.get("threads"))
    if count is not None and "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def use_threads(count: int) -> None:
    """Sets the number of threads of this process from now on.

    Raises:
        MergeError: none.
    """
    if count < 1:
        raise MergeError(f"threads={count}: expected the number of threads, from 1 to {MOST}")
    import torch

    torch.set_num_threads(count)
    _settled.clear()


def settled_threads() -> str:
    """What has been settled, in words for the log; empty where the user did, or nothing is computed."""
    how = ", which wait passively: other programs use these cores" if "passive" in _settled else ""
    return f"{_settled['threads']} threads{how}" if "threads" in _settled else ""


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
            if not (value.isdecimal() and len(value) < 9 and 1 <= int(value) <= MOST):
                raise MergeError(f"--threads {value}: expected the number of threads, from 1 to {MOST}")
            asked = int(value)
        elif name == "--threads":
            waiting = True
        else:
            rest.append(argument)
    if waiting:
        raise MergeError(f"--threads: expected the number of threads, from 1 to {MOST}")
    return rest, asked
