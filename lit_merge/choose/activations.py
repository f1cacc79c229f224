"""What flows into every weight of an expert while it sees unlabelled images."""

import functools
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Checkpoint, SafetensorsFile, write_safetensors
from lit_merge.console import track
from lit_merge.data.streams import ImageSource
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.experts.moments import FileMoments, Moments, check_finite, load_moments, save_moments
from lit_merge.networks.network import Network
from lit_merge.networks.products import WatchedProducts, visible_products

BATCH = 8  # inputs per forward


class InputMoments(WatchedProducts):
    """Sums XᵀX in float64 over the inputs X of every weight that is used as y = x·Wᵀ while this is active."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.kept: Bool[Tensor, " S"] | None = None
        """Which tokens of the one sequence that is going through count; None for all."""

    def seen(self, name: str, first: int, inputs: Float[Tensor, "R n"], outputs: Tensor) -> Tensor:
        self._add(name, inputs)
        return outputs

    def moments(self) -> dict[str, Tensor]:
        """name → E[x xᵀ] (n, n) of the inputs so far, on the CPU, for every weight that was used. Starts afresh."""
        found = {name: total.div_(self.rows[name]).cpu() for name, total in self.sums.items()}
        self.sums, self.rows = {}, {}
        return found

    def _add(self, name: str, rows: Float[Tensor, "R n"]) -> None:
        # A network that pools hands on one row per sequence, which stands for a token that counts.
        if self.kept is not None and len(rows) == len(self.kept):
            rows = rows[self.kept]
        rows = rows.double()
        if name not in self.sums:
            self.sums[name], self.rows[name] = rows.new_zeros(rows.shape[1], rows.shape[1]), 0
        self.sums[name].addmm_(rows.T, rows)
        self.rows[name] += len(rows)


def collect_moments(
    experts: Experts,
    network: Network,
    sources: Mapping[str, ImageSource],
    samples: int = 32,
    batch_size: int = BATCH,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Moments:
    """Second moments of every weight's inputs, in each expert over unlabelled images of its task.

    Args:
        experts: one per task.
        network: whose encoder takes the experts' weights.
        sources: task → images, of every expert's task.
        samples: images of each task, drawn without repetition; every token of one is a row.
        batch_size: images per forward; it changes nothing but memory.
        seed: of the draw.
        folder: where they are written, one task after the other, and then read from when needed: by default all tasks
            stay in memory, 1 GB for each with a ViT-B/32.
        overwrite: replace a folder that exists.

    Raises:
        MergeError: a task without images, or with fewer than `samples`; weights that are not the network's;
            activations that are not finite; a folder that exists or cannot be written.
    """
    _check(experts, network, sources, samples, batch_size)

    def one_by_one() -> Iterator[tuple[str, dict[str, Tensor]]]:
        for task, checkpoint in track(experts.checkpoints.items(), "second moments", len(experts.tasks)):
            chosen = _drawn(len(sources[task]), samples, f"{seed}/{task}")
            batches = (sources[task].read(chosen[i : i + batch_size]) for i in range(0, samples, batch_size))
            # No name for what is handed on: it would stay in memory together with the next task's.
            yield task, _finite(input_moments(network, _weights(checkpoint, network), batches), task)

    if folder is None:
        return dict(one_by_one())
    save_moments(folder, one_by_one(), experts, samples, overwrite)
    return load_moments(folder, experts)


def bank_moments(
    bank: TaskBank, network: Network, sources: Mapping[str, ImageSource], folder: Path, samples: int = 64, seed: int = 0
) -> dict[str, Mapping[str, Tensor]]:
    """Second moments of every weight's inputs, in each task's own model as a bank holds it.

    Args:
        bank: with a delta for every task.
        network: whose encoder takes its weights.
        sources: task → unlabelled inputs of every task.
        folder: an empty one, where the moments lie while they are used, in float32.
        samples: inputs of each task, fewer where there are fewer; every token of one is a row.
        seed: of the draw.

    Raises:
        MergeError: a task without inputs; weights that are not the network's; activations that are not finite.
    """
    network.check(bank.shapes)
    found: dict[str, Mapping[str, Tensor]] = {}
    for i, task in enumerate(track(bank.tasks, "second moments", len(bank.tasks))):
        if task not in sources or not len(sources[task]):
            raise MergeError(f"task {task} has no unlabelled inputs to measure features on", task=task)
        chosen = _drawn(len(sources[task]), samples, f"{seed}/{task}")
        batches = (sources[task].read(chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH))
        weights = _copied(bank.expert(task, torch.float32, "canonical"), network)
        own = _finite(input_moments(network, weights, batches), task)
        write_safetensors(folder / f"{i}.safetensors", {name: value.float() for name, value in own.items()})
        found[task] = FileMoments(SafetensorsFile(folder / f"{i}.safetensors"))
    return found


@torch.no_grad()
def input_moments(network: Network, weights: Mapping[str, Tensor], batches: Iterator[Tensor]) -> dict[str, Tensor]:
    """name → E[x xᵀ] (n, n) over the inputs of every watched weight in a forward of these weights.

    Tokens that the network masks are left out. Sequences then go through one by one: inside attention the rows of a
    batch lie in an order of their own.
    """
    watch = InputMoments(weights)
    with visible_products():
        for batch in batches:
            mask = network.token_mask(batch)
            for i, part in enumerate(batch.split(len(batch) if mask is None else 1)):
                moved = part.to(network.device)
                watch.kept = None if mask is None else mask[i].to(network.device)
                network.holding(weights, functools.partial(_encode, network, moved, watch))
    return watch.moments()


def _encode(network: Network, inputs: Tensor, watch: InputMoments) -> None:
    with watch:
        network.encode(inputs)


def _weights(checkpoint: Checkpoint, network: Network) -> dict[str, Tensor]:
    """All weights of an expert that the network runs, in float32, which the inputs are in, on its device."""
    return _copied({name: checkpoint.read(name) for name in checkpoint.shapes}, network)


def _copied(weights: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    # Copies: tensors mapped from one file share its memory, and memory is what weights are known by.
    return {
        name: value.to(
            network.device, torch.float32 if value.is_floating_point() else value.dtype, copy=True
        ).contiguous()
        for name, value in weights.items()
        if network.runs(name)
    }


def _drawn(there: int, samples: int, seed: str) -> list[int]:
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return torch.randperm(there, generator=generator)[:samples].tolist()


def _finite(moments: dict[str, Tensor], task: str) -> dict[str, Tensor]:
    for name, moment in moments.items():
        check_finite(moment, task, name)
    return moments


def _check(
    experts: Experts, network: Network, sources: Mapping[str, ImageSource], samples: int, batch_size: int
) -> None:
    if samples < 1 or batch_size < 1:
        raise MergeError(f"samples={samples}, batch_size={batch_size}: expected at least 1")
    network.check(experts.shapes)
    for task in sources:
        if task not in experts.tasks:
            raise MergeError(f"images of a task {task} that is not merged ({', '.join(experts.tasks)})", task=task)
    for task in experts.tasks:
        there = len(sources[task]) if task in sources else 0
        if there < samples:
            raise MergeError(
                f"task {task} has {there} unlabelled images, {samples} are asked for: add images, or lower samples",
                task=task,
            )
