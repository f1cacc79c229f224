"""One weight of all experts: what a method gets to merge."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn.functional import pad

from lit_merge.bank.linalg import product_svd
from lit_merge.bank.low_rank import LowRank
from lit_merge.checkpoints.updates import Update
from lit_merge.errors import MergeError
from lit_merge.experts.decompositions import Decompositions

Decompose = Callable[[Tensor, int], LowRank]
"""(T, m, n) and a rank → the leading directions."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight of all experts, in float32 (float64 stays).

    Attributes:
        name: of the weight.
        experts: θ_t.
        base: θ₀, where it is asked for.
        decompositions: that are kept.
        vectors: θ_t − θ₀ where some experts are known as sums, as LoRA's: exactly, as no difference of θ is.
        updates: the same as products, where all are.
    """

    name: str
    experts: Shaped[Tensor, "T ..."]
    base: Shaped[Tensor, "..."] | None
    decompositions: Decompositions | None = None
    vectors: Shaped[Tensor, "T ..."] | None = None
    updates: tuple[Update, ...] | None = None

    @property
    def distinct(self) -> list[Tensor]:
        """What tells the experts, and the base after them where there is one, from each other."""
        if self.vectors is not None:
            return [*self.vectors, *([] if self.base is None else [torch.zeros_like(self.base)])]
        return [*self.experts, *([] if self.base is None else [self.base])]

    @property
    def agrees(self) -> bool:
        """Whether all experts, and the base where there is one, hold the same values: nothing to merge."""
        first, *others = self.distinct
        # Stops where the first two differ.
        return all(torch.equal(first, other) for other in others)

    def to(self, device: torch.device) -> "Weight":
        """The same on another device."""
        base, vectors = (None if one is None else one.to(device) for one in (self.base, self.vectors))
        updates = None if self.updates is None else tuple(one.to(device) for one in self.updates)
        return replace(self, experts=self.experts.to(device), base=base, vectors=vectors, updates=updates)

    @property
    def task_vectors(self) -> Shaped[Tensor, "T ..."]:
        """τ_t = θ_t − θ₀."""
        if self.base is None:
            raise MergeError(f"task vectors of {self.name} need the pretrained checkpoint: pass base=…")
        return self.experts - self.base if self.vectors is None else self.vectors

    @property
    def low_rank(self) -> LowRank | None:
        """τ_t as factors of their own rank, exactly, where all experts are known as low-rank updates of a matrix."""
        return self._exact("vectors")

    @property
    def rounding(self) -> float:
        """About the largest singular value of what the entries of a stored matrix were rounded by (of products of
        updates, where those are known): what a task vector has below it is not the expert's. By the longest row and
        column: errors of entries know nothing of each other."""
        rounded = self.base if self.updates is None else self.vectors
        if rounded is None:
            return 0.0
        longest = rounded.norm(dim=-1).max() + rounded.norm(dim=-2).max()
        return torch.finfo(rounded.dtype).eps * longest.item()

    @property
    def centred(self) -> Shaped[Tensor, "T ..."]:
        """θ_t − θ̄, the task vectors from the mean of the experts."""
        values = self.experts if self.vectors is None else self.vectors
        return values - values.mean(0)

    def svd(self, of: str) -> Decompose:
        """What decomposes this weight's matrices, looking first among the decompositions that are kept.

        Args:
            of: names what is decomposed, so that methods share it: `vectors` is every θ_t − θ₀, `centred` every
                θ_t − θ̄, `sum` the one matrix Σ_t (θ_t − θ₀).
        """
        exact = self._exact(of)
        if exact is not None:
            return lambda _, rank: exact.truncate(rank)
        if self.decompositions is None:
            return LowRank.from_dense
        return functools.partial(self.decompositions.get, f"{self.name} {of}")

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
