"""A suite of images or texts by name, as the studies and benchmarks take it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lit_merge import Experts, OpenClipImageEncoder, Suite
from lit_merge.checkpoints.locations import cache_folder, resolve
from lit_merge.data import TaskData
from lit_merge.errors import MergeError
from lit_merge.networks import Network


@dataclass(frozen=True)
class Opened:
    """Experts, the network that they are of, and the inputs of every task."""

    experts: Experts
    network: Network
    data: TaskData


def check_built(suite: str) -> Path:
    """The folder of `text:SEED`, `zoo:8` and its like.

    Raises:
        MergeError: a suite that has not been built.
    """
    kind, _, seed = suite.partition(":")
    if kind != "text":
        resolve(f"{suite}/zoo.json")
        return resolve(suite)
    folder = cache_folder() / "text" / f"seed{seed}"
    if not (folder / "suite.json").exists():
        raise MergeError(f"{suite}: this suite is not built: run python scripts/text_suite/build.py --seed {seed}")
    return folder


def open_suite(suite: str) -> Opened:
    """Opens a suite by its name.

    Raises:
        MergeError: a suite that has not been built.
    """
    folder = check_built(suite)
    data: TaskData
    network: Network
    if suite.startswith("text:"):
        # Needs transformers, which images do not.
        from text_suite.network import TextNetwork, TextSuite

        data, network = TextSuite(folder), TextNetwork(folder)
    else:
        data = Suite(str(folder))
        network = OpenClipImageEncoder(str(folder / "network.json"), str(folder / "heads.safetensors"))
    sources = {task: folder / "experts" / f"{task}.safetensors" for task in data.tasks}
    return Opened(Experts(sources, folder / "base.safetensors"), network, data)


def over_seeds(folder: Path, subject: str) -> dict[str, list[dict[str, Any]]]:
    """Kind of suite, as `zoo-8` or `text` → what its files `SUBJECT-SUITE.json` hold, one for each seed of experts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"{subject}-*.json")):
        kind = path.stem.removeprefix(f"{subject}-").partition("-seed")[0]
        found.setdefault("text" if kind.startswith("text") else kind, []).append(json.loads(path.read_text("utf-8")))
    return found


def spread(values: Sequence[float]) -> str:
    """Mean, and of several values their deviation."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
