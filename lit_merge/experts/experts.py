"""The experts of a merge and their base: checked against each other, then streamed one weight at a time."""

import functools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor

from lit_merge.checkpoints import Checkpoint, Selection, Source, named_like
from lit_merge.checkpoints.safetensors_writer import is_finite
from lit_merge.errors import MergeError, MergeWarning, MisfitError
from lit_merge.experts.alignment import align, differences, matching
from lit_merge.experts.files import open_all
from lit_merge.experts.weight import Weight

# Bytes of one weight in all experts, from which on it is not read while another one is in memory.
HUGE = 2**29
# Entries of all experts in one block of a weight that comes in blocks, and a multiple of what vectorised loops take in
# one step.
BLOCK, ALIGNED = 2**25, 1024

# What layers saw of their inputs: no learnt weights, so neither are their differences task vectors. A mean of variances
# is one, above 0; a sum of differences need not be.
STATISTICS = ("running_mean", "running_var")
# Numbers that count what a training did: BatchNorm's, and those of averages of weights.
COUNTER = re.compile(r"(num|n|count|counter|step|steps|iter|iteration|epoch)(_\w+)?|\w+_(step|steps|count|updates)")

Piece = tuple[str, slice | None]
"""A weight's name and which of its rows; None for all."""


class Experts:
    """Opened checkpoints by task. Construction reads headers only.

    Weights of a CLIP go by canonical names (`Naming`), whatever library the files are of; `naming` is the first
    expert's. Weights of other models keep their names.

    Args:
        sources: task → path or state dict, in the order of the tasks.
        base: the pretrained checkpoint, where it is known.
        exclude: shell patterns of weights that are not merged, as `classifier.*`, in experts and base alike.
        crop: of vocabularies that differ by tokens which were added, merge the rows that all have.

    Raises:
        MisfitError: names, shapes or dtypes that differ.
        MergeError: no experts; a file that is missing or broken; a pattern that matches no weight, or patterns that
            leave none.

    `whole` and `whole_base` hold them with what is excluded; `dtypes` are the first expert's, in which merges are
    written, `widest` those that hold the values of all.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        base: Source | None = None,
        exclude: Sequence[str] = (),
        crop: bool = False,
    ) -> None:
        self.whole, self.whole_base = open_all(sources, base)
        self.checkpoints, self.base = align(self.whole, self.whole_base, exclude, crop)
        self.exclude = tuple(exclude)
        if found := list(differences(self.checkpoints, self.base)):
            raise MisfitError(found)
        first = next(iter(self.checkpoints.values()))
        self.tasks = tuple(self.checkpoints)
        self.naming = first.naming
        self.shapes = first.shapes
        self.dtypes = first.dtypes
        self.nbytes = sum(checkpoint.nbytes for checkpoint in self.checkpoints.values())
        self._told: set[str] = set()
        self.widest = {name: self._widest(name) for name in self.dtypes}

    @property
    def cropped(self) -> dict[str, int]:
        """Weight → number of rows, of vocabularies of which some checkpoints have more."""
        return {
            name: self.shapes[name][0]
            for name in self.shapes
            if any(name in file.shapes and file.shapes[name] != self.shapes[name] for file in self._files)
        }

    @property
    def excluded(self) -> list[str]:
        """Weights that are left out of the merge by name."""
        names = dict.fromkeys(name for file in self._files for name in (*file.shapes, *file.unfit))
        found = matching(self.exclude, names)
        return [name for name in names if name in found]

    def _widest(self, name: str) -> torch.dtype:
        """In which a weight of all experts can be held; says once that they are stored in several dtypes."""
        found = self.dtypes[name]
        for task, checkpoint in self.checkpoints.items():
            if (other := checkpoint.dtypes[name]) != self.dtypes[name]:
                text = f"{name} is {self.dtypes[name]} in {self.tasks[0]} and {other} in {task}: merged in float32"
                self._say("dtypes", f"{text} or wider and written in the first one's, or in --dtype")
                found = torch.promote_types(found, other)
        return found

    def precision(self, name: str) -> torch.dtype:
        """The widest dtype of a weight and of its updates."""
        found = self.dtypes[name]
        for checkpoint in self.checkpoints.values():
            if checkpoint.is_updated(name) and (update := checkpoint.update(name)) is not None:
                found = torch.promote_types(found, update.dtype)
        return found

    @property
    def statistics(self) -> list[str]:
        """Weights that are no learnt ones, but what layers saw of their inputs: they are averaged."""
        return [name for name in self.shapes if name.rpartition(".")[2] in STATISTICS]

    def of_base_file(self) -> list[str]:
        """Tasks whose expert is the file of the base."""
        base = set() if self.whole_base is None else {path.resolve() for path in self.whole_base.files}
        found = {task: {path.resolve() for path in file.files} for task, file in self.whole.items()}
        return [task for task, files in found.items() if files and files == base]

    def left_to_base(self) -> Checkpoint | None:
        """What is excluded from the merge, as the base has it; None where it has nothing of that, or goes by other
        names than the experts'."""
        if self.whole_base is None or not self.naming.identity:
            return None
        # By the experts' names, as what is merged is.
        whole = named_like(self.whole_base, next(iter(self.whole.values())).shapes)
        excluded = set(self.excluded)
        there = {name: name for name in whole.shapes if excluded & {name, whole.name_of(name)}}
        return Selection(whole, there) if there else None

    @property
    def copies(self) -> set[str]:
        """Weights of the experts that are not merged, being equal to others: tied ones under a second name."""
        names = {name for file in self.whole.values() for name in file.shapes}
        return names - self.shapes.keys() - set(self.excluded)

    @property
    def identity(self) -> object:
        """What tells these files from others: paths, sizes and times; None where weights are in memory only."""
        opened = self._files
        if not all(checkpoint.files for checkpoint in opened):
            return None
        stats = [(str(path.absolute()), path.stat()) for checkpoint in opened for path in checkpoint.files]
        return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]

    @property
    def _files(self) -> list[Checkpoint]:
        return [*self.whole.values(), *([] if self.whole_base is None else [self.whole_base])]

    @property
    def sizes(self) -> dict[str, int]:
        """Weight → its bytes in all experts together."""
        return {name: self.size((name, None)) for name in self.shapes}

    def sizes_of(self, pieces: Sequence[Piece]) -> dict[str, int]:
        """Rows of weights, under names of their own → their bytes in all experts together."""
        return {f"{name} {rows}": self.size((name, rows)) for name, rows in pieces}

    def size(self, piece: Piece) -> int:
        """Bytes of a weight, or of some of its rows, in all experts together."""
        return len(self.tasks) * math.prod(self.shape(piece)) * self.dtypes[piece[0]].itemsize

    def shape(self, piece: Piece) -> tuple[int, ...]:
        """Of a weight, or of some of its rows."""
        name, rows = piece
        return self.shapes[name] if rows is None else (rows.stop - rows.start, *self.shapes[name][1:])

    def blocks(self, name: str) -> list[Piece]:
        """A weight as blocks of its rows, where it is large, for work that treats every entry by itself: the results
        are those of the whole, to the bit."""
        shape = self.shapes[name]
        inner = math.prod(shape[1:])
        # Of a number of entries by which vectorised loops treat each as they do within the whole.
        step = ALIGNED // math.gcd(ALIGNED, inner)
        count = step * max(1, BLOCK // (step * inner * len(self.tasks) or 1))
        # The factors of updates are of whole weights.
        if not shape or count >= shape[0] or any(file.is_updated(name) for file in self.checkpoints.values()):
            return [(name, None)]
        return [(name, slice(start, min(start + count, shape[0]))) for start in range(0, shape[0], count)]

    def stream(self, with_base: bool, pieces: Sequence[Piece] | None = None) -> Iterator[Weight]:
        """Every weight in turn; while one is worked on the next one is read, unless it is huge. At any time only these
        are in memory.

        Args:
            with_base: whether they carry the base's values.
            pieces: which weights, or rows of weights, in which order; None for all.

        Raises:
            MergeError: NaN or infinity in a weight; a weight that is no floating-point number and differs.
        """
        read = functools.partial(self._read, base=self.base if with_base else None)
        pieces = [(name, None) for name in self.shapes] if pieces is None else pieces
        with ThreadPoolExecutor(1, "reading") as reader:
            ahead: Future[Weight] | None = None
            for piece, following in zip_longest(pieces, pieces[1:]):
                values = [read(piece) if ahead is None else ahead.result()]
                soon = following is not None and self.size(following) < HUGE
                ahead = reader.submit(read, following) if soon else None
                # Nothing here holds on to a weight while it is worked on.
                yield self._weight(values.pop())

    def _read(self, piece: Piece, base: Checkpoint | None) -> Weight:
        """Nothing but reading: it happens beside other work."""
        name, rows = piece
        if any(checkpoint.is_updated(name) for checkpoint in self.checkpoints.values()):
            return self._read_updated(name, base is not None)
        row, shape = 0 if rows is None else rows.start, self.shape(piece)
        experts = torch.empty(len(self.tasks), *shape, dtype=self.widest[name])
        for value, checkpoint in zip(experts, self.checkpoints.values(), strict=True):
            stored = checkpoint.dtypes[name]
            found = value if stored == value.dtype else torch.empty(shape, dtype=stored)
            checkpoint.read_into(name, found, row)
            value.copy_(found)
        if base is None:
            return Weight(name, experts, None)
        own = torch.empty(shape, dtype=base.dtypes[name])
        base.read_into(name, own, row)
        return Weight(name, experts, own)

    def _read_updated(self, name: str, with_base: bool) -> Weight:
        """A weight that some experts hold as the base's and a low-rank update: sums are not rounded to its dtype."""
        assert self.base is not None  # adapters are opened on it
        updates = [checkpoint.update(name) for checkpoint in self.checkpoints.values()]
        own = self.base.read(name)
        own = own.to(torch.promote_types(own.dtype, torch.float32))
        vectors = torch.empty(len(updates), *own.shape, dtype=own.dtype)
        for vector, update, checkpoint in zip(vectors, updates, self.checkpoints.values(), strict=True):
            vector.copy_(checkpoint.read(name).to(own.dtype) - own if update is None else update.dense())
        exact = tuple(update for update in updates if update is not None)
        whole = exact if len(exact) == len(updates) else None
        return Weight(name, own + vectors, own if with_base else None, vectors=vectors, updates=whole)

    def _weight(self, read: Weight) -> Weight:
        """The weight as it is merged, in float32 or more."""
        name, experts, base = read.name, read.experts, read.pretrained
        for value, (task, checkpoint) in zip(experts, self.checkpoints.items(), strict=True):
            _check_finite(value, checkpoint, name, task)
        if base is not None and self.base is not None:
            _check_finite(base, self.base, name, "base")
        last = name.rpartition(".")[2]
        if experts.is_floating_point():
            dtype = torch.promote_types(experts.dtype, torch.float32)
            experts, base = experts.to(dtype), None if base is None else base.to(dtype)
            if last in STATISTICS:
                mean = experts.mean(0)
                if not (experts == experts[0]).all():
                    self._say("statistics", f"running means and variances, as {name}, are averaged: no task vectors")
                # Of all and of the base the same: then there is nothing to merge.
                return Weight(name, mean.expand_as(experts), None if base is None else mean)
            return replace(read, experts=experts, pretrained=base)
        if (experts == experts[0]).all():
            # Counters and indices: what the experts agree on holds, whatever the base had counted.
            return Weight(name, experts, None)
        if experts[0].ndim == 0 and COUNTER.fullmatch(last):
            self._say("counters", f"counters that differ, as {name}, are those of {self.tasks[0]}, the first expert")
            return Weight(name, experts[:1].expand_as(experts), None)
        raise MergeError(
            f"{name} is of dtype {experts.dtype} and differs between the experts: only floating-point weights can be "
            "merged",
            weight=name,
        )

    def _say(self, kind: str, text: str) -> None:
        """Once of all weights of a kind, however often they are read."""
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(text, MergeWarning, stacklevel=2)


def _check_finite(value: Tensor, checkpoint: Checkpoint, name: str, task: str) -> None:
    if is_finite(value):
        return
    value = checkpoint.read(name)  # the message is of the whole, whichever rows these are
    bad = value.numel() - int(value.isfinite().sum())
    raise MergeError(
        f"{checkpoint.label}: {checkpoint.name_of(name)} holds NaN or infinity in {bad:,} of {value.numel():,} places",
        task=task,
        weight=checkpoint.name_of(name),
    )
