"""What a method reads: the weights of all experts, one at a time, as a transform leaves them."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.checkpoints import Checkpoint
from lit_merge.checkpoints.tensor_values import is_finite
from lit_merge.console import track_weights
from lit_merge.errors import MergeError
from lit_merge.experts.experts import STATISTICS, Experts, Piece
from lit_merge.experts.weight import Weight

# Bytes of one weight in all experts, from which on it is not read while another one is in memory.
HUGE = 2**29
# Numbers that count what a training did: BatchNorm's, and those of averages of weights.
COUNTER = re.compile(r"(num|n|count|counter|step|steps|iter|iteration|epoch)(_\w+)?|\w+_(step|steps|count|updates)")

Change = Callable[[Weight], Weight]


class WeightStream:
    """The weights of all experts, as often as they are iterated over, one in memory at a time.

    Args:
        experts: opened checkpoints.
        with_base: whether weights carry the values of the pretrained checkpoint.
        change: what a transform makes of every weight.
    """

    def __init__(self, experts: Experts, with_base: bool, change: Change | None = None) -> None:
        self.experts, self.with_base, self.change = experts, with_base, change

    def __len__(self) -> int:
        return len(self.experts.shapes)

    def __iter__(self) -> Iterator[Weight]:
        return self.stream()

    def stream(self, pieces: Sequence[Piece] | None = None) -> Iterator[Weight]:
        """Every weight in turn; while one is worked on the next one is read, unless it is huge. At any time only these
        are in memory.

        Args:
            pieces: which weights, or rows of weights, in which order; None for all.

        Raises:
            MergeError: NaN or infinity in a weight; a weight that is no floating-point number and differs.
        """
        pieces = [(name, None) for name in self.experts.shapes] if pieces is None else pieces
        with ThreadPoolExecutor(1, "reading") as reader:
            ahead: Future[Weight] | None = None
            for piece, following in zip_longest(pieces, pieces[1:]):
                values = [self._read(piece) if ahead is None else ahead.result()]
                soon = following is not None and self.experts.size(following) < HUGE
                ahead = reader.submit(self._read, following) if soon else None
                # Nothing here holds on to a weight while it is worked on.
                yield self._changed(self._weight(values.pop()))

    def blocks(self, name: str) -> list[Piece]:
        """See `Experts.blocks`; one block where a transform looks at whole weights."""
        return [(name, None)] if self.change is not None else self.experts.blocks(name)

    def vector_parts(self, length: int, doing: str) -> Iterator[Float[Tensor, "T _"]]:
        """τ_t of all floating-point weights, in parts of at most this length; `doing` labels the progress."""
        pieces = [piece for name in self.experts.shapes for piece in self.blocks(name)]
        for weight in track_weights(self.stream(pieces), self.experts.sizes_of(pieces), doing):
            if weight.experts.is_floating_point():
                yield from weight.vector_parts(length)

    def _changed(self, weight: Weight) -> Weight:
        return self.change(weight) if self.change is not None and weight.experts.is_floating_point() else weight

    def _read(self, piece: Piece) -> Weight:
        """Nothing but reading: it happens in a thread of its own."""
        name, rows = piece
        files, base = self.experts.checkpoints.values(), self.experts.base if self.with_base else None
        if any(checkpoint.is_updated(name) for checkpoint in files):
            return self._read_updated(name)
        row, shape = 0 if rows is None else rows.start, self.experts.shape(piece)
        experts = torch.empty(len(files), *shape, dtype=self.experts.widest[name])
        for value, checkpoint in zip(experts, files, strict=True):
            stored = checkpoint.dtypes[name]
            found = value if stored == value.dtype else torch.empty(shape, dtype=stored)
            checkpoint.read_into(name, found, row)
            value.copy_(found)
        if base is None:
            return Weight(name, experts, None)
        own = torch.empty(shape, dtype=base.dtypes[name])
        base.read_into(name, own, row)
        return Weight(name, experts, own)

    def _read_updated(self, name: str) -> Weight:
        """A weight that some experts hold as the base's and a low-rank update: sums are not rounded to its dtype."""
        files, base = self.experts.checkpoints.values(), self.experts.base
        assert base is not None  # adapters are opened on it
        updates = [checkpoint.update(name) for checkpoint in files]
        own = base.read(name)
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        vectors = torch.empty(len(updates), *own.shape, dtype=own.dtype)
        for vector, update, checkpoint in zip(vectors, updates, files, strict=True):
            vector.copy_(checkpoint.read(name).to(own.dtype) - own if update is None else update.dense())
        exact = tuple(update for update in updates if update is not None)
        whole = exact if len(exact) == len(updates) else None
        return Weight(name, own + vectors, own if self.with_base else None, vectors=vectors, updates=whole)

    def _weight(self, read: Weight) -> Weight:
        """The weight as it is merged, in float32 or more."""
        name, experts, base = read.name, read.experts, read.pretrained
        for value, (task, checkpoint) in zip(experts, self.experts.checkpoints.items(), strict=True):
            _check_finite(value, checkpoint, name, task)
        if base is not None and self.experts.base is not None:
            _check_finite(base, self.experts.base, name, "base")
        last, warn = name.rpartition(".")[2], self.experts.warn_once
        if experts.is_floating_point():
            dtype = torch.promote_types(experts.dtype, torch.float32)
            experts, base = experts.to(dtype), None if base is None else base.to(dtype)
            if last in STATISTICS:
                mean = experts.mean(0)
                if not (experts == experts[0]).all():
                    warn("statistics", f"running means and variances, as {name}, are averaged: no task vectors")
                # Of all and of the base the same: then there is nothing to merge.
                return Weight(name, mean.expand_as(experts), None if base is None else mean)
            return replace(read, experts=experts, pretrained=base)
        if (experts == experts[0]).all():
            # Counters and indices: what the experts agree on holds, whatever the base had counted.
            return Weight(name, experts, None)
        if experts[0].ndim == 0 and COUNTER.fullmatch(last):
            first = self.experts.tasks[0]
            warn("counters", f"counters that differ, as {name}, are those of {first}, the first expert")
            return Weight(name, experts[:1].expand_as(experts), None)
        raise MergeError(
            f"{name} is of dtype {experts.dtype} and differs between the experts: only floating-point weights can be "
            "merged",
            weight=name,
        )


def _check_finite(value: Tensor, checkpoint: Checkpoint, name: str, task: str) -> None:
    if is_finite(value):
        return
    value = checkpoint.read(name)  # the message is of the whole weight, not of some rows
    bad = value.numel() - int(value.isfinite().sum())
    raise MergeError(
        f"{checkpoint.label}: {checkpoint.name_of(name)} holds NaN or infinity in {bad:,} of {value.numel():,} places",
        task=task,
        weight=checkpoint.name_of(name),
    )
