"""One weight of all experts: what a method gets to merge."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.functional import pad

from lit_merge.bank.decomposer import Decompose, Decomposer
from lit_merge.bank.gram import norms_of
from lit_merge.bank.linalg import product_svd
from lit_merge.bank.low_rank import LowRank, rank_of
from lit_merge.checkpoints.updates import Update
from lit_merge.errors import MergeError
from lit_merge.experts.decompositions import Decompositions

# Entries of a task that are worked on at once: so few stay in the processor's own memory from one step to the next.
PART = 2**17


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight of all experts, in float32 (float64 stays).

    Attributes:
        name: of the weight.
        experts: θ_t.
        pretrained: θ₀, where it is asked for.
        vectors: θ_t − θ₀ where some experts are known as sums, as LoRA's: exactly, as no difference of θ is.
        updates: the same as products, where all are.
        decompositions: that are kept.
        exact: whether matrices are decomposed as a whole, see `Decomposer`.
        factors: whether deltas are kept, as in a bank; else only their sum over the tasks counts.
    """

    name: str
    experts: Shaped[Tensor, "T ..."]
    pretrained: Shaped[Tensor, "..."] | None
    vectors: Shaped[Tensor, "T ..."] | None = None
    updates: tuple[Update, ...] | None = None
    decompositions: Decompositions | None = None
    exact: bool = False
    factors: bool = True

    @property
    def base(self) -> Shaped[Tensor, "..."]:
        """θ₀.

        Raises:
            MergeError: there is none.
        """
        if self.pretrained is None:
            raise MergeError(f"task vectors of {self.name} need the pretrained checkpoint: pass base=…")
        return self.pretrained

    @property
    def distinct(self) -> list[Tensor]:
        """What tells the experts, and the base after them where there is one, from each other."""
        if self.vectors is not None:
            return [*self.vectors, *([] if self.pretrained is None else [torch.zeros_like(self.pretrained)])]
        return [*self.experts, *([] if self.pretrained is None else [self.pretrained])]

    @property
    def agrees(self) -> bool:
        """Whether all experts, and the base where there is one, hold the same values: nothing to merge."""
        first, *others = self.distinct
        # Stops where the first two differ.
        return all(torch.equal(first, other) for other in others)

    def to(self, device: torch.device) -> "Weight":
        """This weight on another device."""
        base, vectors = (None if one is None else one.to(device) for one in (self.pretrained, self.vectors))
        updates = None if self.updates is None else tuple(one.to(device) for one in self.updates)
        return replace(self, experts=self.experts.to(device), pretrained=base, vectors=vectors, updates=updates)

    @property
    def task_vectors(self) -> Shaped[Tensor, "T ..."]:
        """τ_t = θ_t − θ₀."""
        base = self.base
        return self.experts - base if self.vectors is None else self.vectors

    @property
    def total(self) -> Shaped[Tensor, "..."]:
        """Σ_t τ_t, with one τ_t in memory at a time where no factors are wanted."""
        if not self._sums:
            return self.task_vectors.sum(0)
        total, vector = torch.zeros_like(self.base), torch.empty_like(self.base)
        for expert in self.experts:
            total += torch.sub(expert, self.base, out=vector)
        return total

    def vector_parts(self, length: int) -> Iterator[Shaped[Tensor, "T _"]]:
        """τ_t, flattened, in parts of at most this length, one in memory at a time."""
        base = self.base.flatten().split(length)
        experts = self.experts if self.vectors is None else self.vectors
        for part, own in zip(experts.reshape(len(experts), -1).split(length, 1), base, strict=True):
            yield part - own if self.vectors is None else part

    def merge_entries(self, formula: Callable[[Tensor], Tensor]) -> Shaped[Tensor, "_ ..."]:
        """What a formula makes of the task vectors that treats every entry by itself, (T, …); where no factors are
        wanted the sum over the tasks, (1, …).

        Args:
            formula: (T, n) of any n → (T, n).
        """
        parts = map(formula, self.vector_parts(PART))
        if not self.factors:
            return torch.cat([part.sum(0) for part in parts]).view(1, *self.base.shape)
        merged = torch.empty_like(self.experts)
        for place, part in zip(merged.view(len(merged), -1).split(PART, 1), parts, strict=True):
            place.copy_(part)
        return merged

    @property
    def low_rank(self) -> LowRank | None:
        """τ_t as factors of their own rank, exactly, where all experts are known as low-rank updates of a matrix."""
        return self._exact("vectors")

    @property
    def rounding(self) -> float:
        """About the largest singular value of what the entries of a stored matrix were rounded by (of products of
        updates, where those are known): what a task vector has below it is not the expert's. By the longest row and
        column: errors of entries know nothing of each other."""
        rounded = self.pretrained if self.updates is None else self.vectors
        if rounded is None:
            return 0.0
        longest = norms_of(rounded, -1).max() + norms_of(rounded, -2).max()
        return torch.finfo(rounded.dtype).eps * longest.item()

    @property
    def centred(self) -> Shaped[Tensor, "T ..."]:
        """θ_t − θ̄, the task vectors from the mean of the experts."""
        values = self.experts if self.vectors is None else self.vectors
        return values - values.mean(0)

    def svd(self, of: str) -> Decompose:
        """What decomposes this weight's matrices, see `decomposer`."""
        return self.decomposer(of).svd

    def decomposer(self, of: str, sums: bool = False) -> Decomposer:
        """What decomposes this weight's matrices, looking first among what is known of them or kept.

        Args:
            of: names what is decomposed, so that methods share it: `vectors` is every θ_t − θ₀, `centred` every
                θ_t − θ̄, `sum` the one matrix Σ_t (θ_t − θ₀).
            sums: whether the sum over the tasks will do where no factors are wanted.
        """
        exact = self._exact(of)
        if exact is not None:
            return Decomposer(self.exact, known=lambda _, rank: exact.truncate(rank))
        if self.decompositions is None:
            return Decomposer(self.exact, sums and self._sums)
        return Decomposer(self.exact, known=partial(self.decompositions.get, f"{self.name} {of}", exact=self.exact))

    @property
    def _sums(self) -> bool:
        """Whether sums over the tasks cost less than what is known or kept."""
        return not self.factors and self.decompositions is None and self.vectors is None

    def rank_per_task(self, directions: int, rank_ratio: float | None) -> int:
        """k = ⌊r/T⌋ of r ≥ T directions, or ⌊rank_ratio·r⌋, of which T must fit into r.

        Raises:
            MergeError: directions of all tasks that do not fit side by side.
        """
        tasks = len(self.experts)
        if rank_ratio is None:
            return directions // tasks
        if (rank := rank_of(rank_ratio, directions, directions)) * tasks > directions:
            raise MergeError(
                f"rank_ratio={rank_ratio} keeps {rank} directions of {self.name} for each of {tasks} tasks, "
                f"{rank * tasks} of {directions}: take at most {1 / tasks:.4g}, or leave it out",
                weight=self.name,
            )
        return rank

    def _exact(self, of: str) -> LowRank | None:
        """The decomposition of what `svd` names, from the factors of updates, in float64; None where there are none, or
        more of them than the matrix has directions."""
        updates = self.updates
        if updates is None or self.experts.ndim != 3:
            return None
        tasks, rank = len(updates), max(1, *(one.rank for one in updates))
        lefts, rights = [one.left.double() for one in updates], [one.right.double() for one in updates]
        if of == "vectors":
            left = torch.stack([pad(one, (0, rank - one.shape[1])) for one in lefts])
            right = torch.stack([pad(one, (0, 0, 0, rank - one.shape[0])) for one in rights])
        else:
            # Every one of these is a mix of all updates: their sum, or each without the mean.
            ones = torch.ones(1, tasks, dtype=torch.float64)
            mix = ones if of == "sum" else torch.eye(tasks, dtype=torch.float64) - ones / tasks
            rows = ([share * one for share, one in zip(row, lefts, strict=True)] for row in mix)
            left = torch.stack([torch.cat(row, 1) for row in rows])
            right = torch.cat(rights).expand(len(mix), -1, -1)
        if not 0 < left.shape[2] <= min(self.experts.shape[1:]):
            return None
        return LowRank(*(one.to(self.experts.dtype) for one in product_svd(left, right)))
