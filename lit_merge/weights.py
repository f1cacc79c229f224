"""One weight of all experts: what a method gets to merge."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor

from lit_merge.decompositions import Decompositions
from lit_merge.errors import MergeError
from lit_merge.low_rank import LowRank

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

    def to(self, device: torch.device) -> "Weight":
        """The same on another device."""
        base = None if self.base is None else self.base.to(device)
        return replace(self, experts=self.experts.to(device), base=base)

    @property
    def task_vectors(self) -> Shaped[Tensor, "T ..."]:
        """τ_t = θ_t − θ₀."""
        if self.base is None:
            raise MergeError(f"task vectors of {self.name} need the pretrained checkpoint: pass base=…")
        return self.experts - self.base

    @property
    def rounding(self) -> float:
        """About the largest singular value of what the entries of a stored matrix were rounded by: what a task vector
        has below it is not the expert's. By the longest row and column: errors of entries know nothing of each other.
        """
        if self.base is None:
            return 0.0
        longest = self.base.norm(dim=1).max() + self.base.norm(dim=0).max()
        return torch.finfo(self.base.dtype).eps * longest.item()

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
