"""What flows into every weight of an expert while it sees unlabelled images."""

import functools
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_merge.checkpoints import Checkpoint
from lit_merge.console import track
from lit_merge.data.streams import ImageSource
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.experts.moments import Moments, check_finite, load_moments, save_moments
from lit_merge.networks.network import Network

aten = torch.ops.aten
# Where products take the inputs and the weight from; a linear layer's weight comes as it is, others' transposed.
PRODUCTS = {
    aten.linear.default: (0, 1),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}


class InputMoments(TorchDispatchMode):
    """Sums XᵀX in float64 over the inputs X of every weight that is used as y = x·Wᵀ while this is active.

    It watches products rather than modules: fused attention hands its weights to functions, and no module's forward
    is ever called with them. A weight used as x·W, or not as one matrix, is left out; rows of a weight (a fused one
    that is taken apart) count as the weight.

    Args:
        weights: name → weight; those of two dimensions are watched, each in memory of its own.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.shapes = {name: tuple(w.shape) for name, w in weights.items() if w.ndim == 2 and w.is_floating_point()}
        self.names = {weights[name].untyped_storage().data_ptr(): name for name in self.shapes}
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.kept: Bool[Tensor, " S"] | None = None
        """Which tokens of the one sequence that is going through count; None for all."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            inputs, weight = (args[i] for i in PRODUCTS[func])
            name = self._name(weight if func is aten.linear.default else weight.mT)
            if name is not None:
                self._add(name, inputs.reshape(-1, inputs.shape[-1]))
        return func(*args, **(kwargs or {}))

    def moments(self) -> dict[str, Tensor]:
        """name → E[x xᵀ] (n, n) of the inputs so far, on the CPU, for every weight that was used. Starts afresh."""
        found = {name: total.div_(self.rows[name]).cpu() for name, total in self.sums.items()}
        self.sums, self.rows = {}, {}
        return found

    def _name(self, weight: Float[Tensor, "*B m n"]) -> str | None:
        """The weight of which this is a view, whole or some rows, not transposed."""
        name = self.names.get(weight.untyped_storage().data_ptr())
        if name is None or weight.shape[-1] != (n := self.shapes[name][1]):
            return None
        expected = (*(0 for _ in weight.shape[:-2]), n, 1)
        strides = zip(weight.shape, weight.stride(), expected, strict=True)
        return name if all(size == 1 or stride == right for size, stride, right in strides) else None

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
    batch_size: int = 8,
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
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{task}".encode()))
            chosen = torch.randperm(len(sources[task]), generator=generator)[:samples].tolist()
            batches = (sources[task].read(chosen[i : i + batch_size]) for i in range(0, samples, batch_size))
            # No name for what is handed on: it would stay in memory together with the next task's.
            yield task, _finite(input_moments(network, _weights(checkpoint, network), batches), task)

    if folder is None:
        return dict(one_by_one())
    save_moments(folder, one_by_one(), experts, samples, overwrite)
    return load_moments(folder, experts)


@torch.no_grad()
def input_moments(network: Network, weights: Mapping[str, Tensor], batches: Iterator[Tensor]) -> dict[str, Tensor]:
    """name → E[x xᵀ] (n, n) over the inputs of every watched weight in a forward of these weights.

    Tokens that the network masks are left out. Sequences then go through one by one: inside attention the rows of a
    batch lie in an order of their own.
    """
    watch = InputMoments(weights)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # Attention's native path is one operation, in which no product can be seen.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for batch in batches:
            mask = network.token_mask(batch)
            for i, part in enumerate(batch.split(len(batch) if mask is None else 1)):
                moved = part.to(network.device)
                watch.kept = None if mask is None else mask[i].to(network.device)
                network.holding(weights, functools.partial(_encode, network, moved, watch))
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return watch.moments()


def _encode(network: Network, inputs: Tensor, watch: InputMoments) -> None:
    with watch:
        network.encode(inputs)


def _weights(checkpoint: Checkpoint, network: Network) -> dict[str, Tensor]:
    """All weights of an expert that the network runs, in float32, which the inputs are in, on its device."""
    device = network.device
    read = {name: checkpoint.read(name) for name in checkpoint.shapes if network.runs(name)}
    # Copies: tensors mapped from one file share its memory, and memory is what weights are known by.
    return {
        name: value.to(device, torch.float32 if value.is_floating_point() else value.dtype, copy=True).contiguous()
        for name, value in read.items()
    }


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
