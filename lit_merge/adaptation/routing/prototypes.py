"""Prototypes: what the inputs of every task look like inside a network, found without a label."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.adaptation.routing.discriminants import Discriminants
from lit_merge.adaptation.routing.mean_tokens import RowOrder, mean_tokens, placed
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import SafetensorsFile, write_safetensors
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.locations import resolve
from lit_merge.console import track
from lit_merge.data import TaskData, check_tasks
from lit_merge.errors import MergeError
from lit_merge.networks import Network, compute_dtype

FORMAT, FORMAT_VERSION = "lit_merge prototypes", 1
# Inputs of one forward, and numbers of all features together that are held in memory.
BATCH, MOST = 128, 2**28


@dataclass(frozen=True, eq=False)
class Prototypes:
    """What tells the tasks of a bank apart: nothing that adaptation of the bank changes.

    Attributes:
        tasks: of the bank, T.
        discriminants: of the mean tokens that flow into all layers together, in the forward of the bank's origin.
        layers: name of a layer → the mean token of every task, (T, n), in the forward of its own expert.
        tokens_first: see `RowOrder`.
        fingerprint: of the bank.
    """

    tasks: tuple[str, ...]
    discriminants: Discriminants
    layers: Mapping[str, Float[Tensor, "T n"]]
    tokens_first: Mapping[str, bool]
    fingerprint: str

    @property
    def order(self) -> RowOrder:
        return RowOrder(self.tokens_first)

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self._tensors().values())

    @classmethod
    def collect(cls, bank: TaskBank, network: Network, data: TaskData, samples: int = 400) -> "Prototypes":
        """Looks at unlabelled inputs to adapt on, drawn by the data's seed.

        Args:
            bank: with a delta for every task.
            network: encoder and heads; inputs are moved to where it lies.
            data: with unlabelled inputs of every task by itself.
            samples: inputs of each task; fewer where there are fewer, or features are so wide that memory is short.

        Raises:
            MergeError: one delta for all tasks; data of other tasks, or that mixes them; no layer to look at.
        """
        check_routable(bank)
        check_tasks(data, bank.tasks)
        if data.mixed:
            raise MergeError(
                "prototypes are made of unlabelled inputs of every task by itself, and the data mixes them: make them "
                "of other data first, and name their file with --prototypes"
            )
        network.check(bank.shapes)
        data.suit(network)
        dtype, sources = compute_dtype(bank.dtypes.values()), data.unlabelled()
        origin = placed(bank.origin, network, dtype)
        some = network.join([sources[task].read(_drawn(data, len(sources[task]), 2)) for task in bank.tasks])
        order = _order(bank, network, origin, some)
        width = sum(bank.shapes[name][1] for name in order.tokens_first)
        samples = min(samples, max(16, MOST // (width * len(bank.tasks))))
        features, layers = [], []
        for task in track(bank.tasks, "prototypes", len(bank.tasks)):
            inputs = sources[task].read(_drawn(data, len(sources[task]), samples))
            features.append(torch.cat(list(_means(network, origin, order, inputs).values()), 1))
            own = placed(bank.expert(task, dtype, "canonical"), network, dtype)
            layers.append({name: value.mean(0) for name, value in _means(network, own, order, inputs).items()})
            del own  # before the next one is merged
        return cls(
            tasks=bank.tasks,
            discriminants=Discriminants.fit(features),
            layers={name: torch.stack([one[name] for one in layers]) for name in order.tokens_first},
            tokens_first=order.tokens_first,
            fingerprint=bank.fingerprint,
        )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Writes one safetensors file, whole or not at all.

        Raises:
            MergeError: the file exists and `overwrite` is off, or cannot be written.
        """
        about = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "tasks": json.dumps(self.tasks),
            "tokens_first": json.dumps(self.tokens_first),
            "bank": self.fingerprint,
        }
        write_safetensors(path, self._tensors(), about, overwrite)

    @classmethod
    def load(cls, path: str | Path, bank: TaskBank) -> "Prototypes":
        """Reads what `save` wrote, for this bank.

        Raises:
            MergeError: no such file, another one or a newer format; prototypes of another bank, or without one of its
                tasks.
        """
        file = SafetensorsFile(resolve(path))
        about, again = file.metadata, "remove the file to have them made anew, or name another place"
        if about.get("format") != FORMAT or not about.get("format_version", "").isdecimal():
            raise MergeError(f"{file.path} holds no prototypes of lit_merge: {again}")
        if int(about["format_version"]) > FORMAT_VERSION:
            raise MergeError(
                f"{file.path} has format version {about['format_version']}; this lit_merge reads up to "
                f"{FORMAT_VERSION}: update it"
            )
        try:
            tasks, first = tuple(parse_json(about["tasks"])), dict(parse_json(about["tokens_first"]))
        except (LookupError, ValueError, TypeError) as error:
            raise MergeError(f"{file.path} is damaged: {again}") from error
        for task in bank.tasks:
            if task not in tasks:
                raise MergeError(f"{file.path} has no prototype of the bank's task {task}: {again}", task=task)
        if about.get("bank") != bank.fingerprint:
            raise MergeError(f"{file.path} holds prototypes of another bank: {again}")
        parts = {name: file.read(name) for name in file.shapes}
        made = Discriminants.of_tensors(parts)
        layers = {name: parts[f"layer/{name}"] for name in first if f"layer/{name}" in parts}
        whole = layers.keys() == first.keys() and all(value.isfinite().all() for value in parts.values())
        if made is None or not whole or not _fits(made, layers, bank):
            raise MergeError(f"{file.path} is damaged: {again}")
        return cls(tasks, made, layers, first, bank.fingerprint)

    def _tensors(self) -> dict[str, Tensor]:
        return self.discriminants.tensors() | {f"layer/{name}": value.cpu() for name, value in self.layers.items()}


def check_routable(bank: TaskBank) -> None:
    """Raises MergeError for a bank that has nothing to choose for an input."""
    if not bank.layers or bank.shared:
        name = bank.method.get("class_path", "this bank")
        raise MergeError(f"{name} has no delta of every task by itself, so there is nothing to route to")


def _order(bank: TaskBank, network: Network, origin: Mapping[str, Tensor], inputs: Tensor) -> RowOrder:
    """Of the layers that are looked at: the matrices with deltas that the network multiplies by."""
    order = RowOrder.find(network, origin, [name for name in bank.layers if len(bank.shapes[name]) == 2], inputs)
    if not order.tokens_first:
        raise MergeError("routing looks at what flows into matrices with deltas, and this bank has none in use")
    return order


def _drawn(data: TaskData, there: int, count: int) -> list[int]:
    chosen = torch.randperm(there, generator=torch.Generator().manual_seed(data.seed))[:count]
    return chosen.sort().values.tolist()


def _means(network: Network, weights: Mapping[str, Tensor], order: RowOrder, inputs: Tensor) -> dict[str, Tensor]:
    """Name → mean token of every input, (N, n), on the CPU."""
    parts = [mean_tokens(network, weights, order, part) for part in inputs.split(BATCH)]
    return {name: torch.cat([part[name].cpu() for part in parts]).float() for name in order.tokens_first}


def _fits(made: Discriminants, layers: Mapping[str, Tensor], bank: TaskBank) -> bool:
    shapes, tasks = bank.shapes, len(bank.tasks)
    return (
        len(made.means) == tasks
        and len(made.centre) == sum(value.shape[-1] for value in layers.values())
        and all(
            name in shapes and tuple(value.shape) == (tasks, math.prod(shapes[name][1:]))
            for name, value in layers.items()
        )
    )
