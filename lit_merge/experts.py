"""The experts of a merge and their base: checked against each other, then streamed one weight at a time."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

import torch
from jaxtyping import Shaped
from torch import Tensor

from lit_merge.alignment import align, differences, matching
from lit_merge.checkpoints import Checkpoint, Selection, Source, canonical, open_checkpoint
from lit_merge.decompositions import Decompositions
from lit_merge.errors import MergeError, MisfitError
from lit_merge.low_rank import LowRank

# Bytes of one weight in all experts, from which on it is not read while another one is in memory.
HUGE = 2**29

Decompose = Callable[[Tensor, int], LowRank]
"""(T, m, n) and a rank → the leading directions."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight of all experts, in float32 (float64 stays)."""

    name: str
    experts: Shaped[Tensor, "T ..."]
    base: Shaped[Tensor, "..."] | None
    decompositions: Decompositions | None = None

    @property
    def agrees(self) -> bool:
        """Whether all experts, and the base where there is one, hold the same values: nothing to merge."""
        first, *others = self.experts if self.base is None else (*self.experts, self.base)
        # Stops where the first two differ.
        return all(torch.equal(first, other) for other in others)

    @property
    def task_vectors(self) -> Shaped[Tensor, "T ..."]:
        """τ_t = θ_t − θ₀."""
        if self.base is None:
            raise MergeError(f"task vectors of {self.name} need the pretrained checkpoint: pass base=…")
        return self.experts - self.base

    @property
    def centred(self) -> Shaped[Tensor, "T ..."]:
        """θ_t − θ̄, the task vectors from the mean of the experts."""
        return self.experts - self.experts.mean(0)

    def svd(self, of: str) -> Decompose:
        """What decomposes this weight's matrices, looking first among the decompositions that are kept.

        Args:
            of: names what is decomposed, so that methods share it: `vectors` is every θ_t − θ₀, `centred` every
                θ_t − θ̄, `sum` the one matrix Σ_t (θ_t − θ₀).
        """
        if self.decompositions is None:
            return LowRank.from_dense
        return functools.partial(self.decompositions.get, f"{self.name} {of}")


Change = Callable[[Weight], Weight]


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

    `whole` and `whole_base` hold them with what is excluded.
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
        names = dict.fromkeys(name for file in self._files for name in file.shapes)
        found = matching(self.exclude, names)
        return [name for name in names if name in found]

    def left_to_base(self) -> Checkpoint | None:
        """What is excluded from the merge, as the base has it; None where it has nothing of that, or goes by other
        names than the experts'."""
        if self.whole_base is None or not self.naming.identity:
            return None
        there = {name: name for name in self.whole_base.shapes if name in self.excluded}
        return Selection(self.whole_base, there) if there else None

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
        return {
            name: len(self.tasks) * math.prod(shape) * self.dtypes[name].itemsize for name, shape in self.shapes.items()
        }

    def stream(self, with_base: bool) -> Iterator[Weight]:
        """Every weight in turn; while one is worked on the next one is read, unless it is huge. At any time only these
        are in memory.

        Raises:
            MergeError: NaN or infinity in a weight; a weight that is no floating-point number and differs.
        """
        read = functools.partial(self._read, base=self.base if with_base else None)
        sizes = self.sizes
        with ThreadPoolExecutor(1, "reading") as reader:
            ahead: Future[tuple[Tensor, Tensor | None]] | None = None
            for name, following in zip_longest(sizes, islice(sizes, 1, None)):
                values = [read(name) if ahead is None else ahead.result()]
                soon = following is not None and sizes[following] < HUGE
                ahead = reader.submit(read, following) if soon else None
                # Nothing here holds on to a weight while it is worked on.
                yield self._weight(name, *values.pop())

    def _read(self, name: str, base: Checkpoint | None) -> tuple[Tensor, Tensor | None]:
        """Nothing but reading: it happens beside other work."""
        experts = torch.empty(len(self.tasks), *self.shapes[name], dtype=self.dtypes[name])
        for t, checkpoint in enumerate(self.checkpoints.values()):
            checkpoint.read_into(name, experts[t])
        return experts, None if base is None else base.read(name)

    def _weight(self, name: str, experts: Tensor, base: Tensor | None) -> Weight:
        for value, (task, checkpoint) in zip(experts, self.checkpoints.items(), strict=True):
            _check_finite(value, checkpoint, name, task)
        if base is not None and self.base is not None:
            _check_finite(base, self.base, name, "base")
        if experts.is_floating_point():
            dtype = torch.promote_types(experts.dtype, torch.float32)
            return Weight(name, experts.to(dtype), None if base is None else base.to(dtype))
        if (experts == experts[0]).all():
            # Counters and indices: what the experts agree on holds, whatever the base had counted.
            return Weight(name, experts, None)
        raise MergeError(
            f"{name} is of dtype {experts.dtype} and differs between the experts: only floating-point weights can be "
            "merged",
            weight=name,
        )


def open_all(
    sources: Mapping[str, Source], base: Source | None = None
) -> tuple[dict[str, Checkpoint], Checkpoint | None]:
    """The experts' checkpoints by task, and the base.

    Raises:
        MergeError: no experts; a file that is missing or broken.
    """
    if not sources:
        raise MergeError("no experts given, expected a mapping from task to checkpoint")
    pretrained = None if base is None else open_checkpoint(base, "base")
    opened: dict[str, Checkpoint] = {}
    for task, source in sources.items():
        try:
            opened[task] = canonical(open_checkpoint(source, f"expert {task}", pretrained))
        except MergeError as error:
            raise MergeError(f"expert {task}: {error}", task=task, weight=error.weight) from error
    return opened, None if pretrained is None else canonical(pretrained)


def _check_finite(value: Tensor, checkpoint: Checkpoint, name: str, task: str) -> None:
    if not value.is_floating_point() or not value.numel() or all(end.isfinite() for end in value.aminmax()):
        return
    bad = value.numel() - int(value.isfinite().sum())
    raise MergeError(
        f"{checkpoint.label}: {checkpoint.name_of(name)} holds NaN or infinity in {bad:,} of {value.numel():,} places",
        task=task,
        weight=checkpoint.name_of(name),
    )


class WeightStream:
    """The weights of all experts, as often as they are iterated over, one in memory at a time.

    Args:
        experts: opened checkpoints.
        with_base: whether weights carry the pretrained checkpoint's values.
        change: what a transform makes of every weight.
        decompositions: kept for weights as they come out of this stream.
    """

    def __init__(
        self,
        experts: Experts,
        with_base: bool,
        change: Change | None = None,
        decompositions: Decompositions | None = None,
    ) -> None:
        self.experts, self.with_base = experts, with_base
        self.change, self.decompositions = change, decompositions

    def __len__(self) -> int:
        return len(self.experts.shapes)

    def __iter__(self) -> Iterator[Weight]:
        yield from map(self._changed, self.experts.stream(self.with_base))

    def _changed(self, weight: Weight) -> Weight:
        kept = replace(weight, decompositions=self.decompositions)
        return self.change(kept) if self.change is not None and weight.experts.is_floating_point() else kept
