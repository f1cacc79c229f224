"""Errors of a weight measured on what it does to its inputs: ESM's metric (arXiv 2602.20208), for one weight."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.low_rank import LowRank
from lit_merge.errors import MergeError

Moments = Mapping[str, Mapping[str, Tensor]]
"""task → name of a weight W of y = x·Wᵀ, (m, n) → E[x xᵀ] over its inputs in that task's expert, (n, n)."""
# Inputs that were never seen count so much of the mean one: what is done to them is not left out for nothing.
UNSEEN = 1e-3


class FeatureMetric:
    """‖D‖² = E‖D·x‖² = tr(D·C_t·Dᵀ) for an error D of one weight in the model of task t, with C_t = E[x xᵀ] of its
    inputs and a small share of the identity.

    Args:
        moments: C_t of every task, (n, n).
        n: number of the weight's inputs.

    Raises:
        MergeError: a moment of another shape.
    """

    def __init__(self, moments: Sequence[Tensor], n: int) -> None:
        if any(moment.shape != (n, n) for moment in moments):
            shapes = sorted({str(list(moment.shape)) for moment in moments})
            raise MergeError(f"second moments of shape {', '.join(shapes)}, expected {[n, n]} of {n} inputs")
        C = torch.stack([moment.double() for moment in moments])
        least = UNSEEN * C.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        self.C: Float[Tensor, "T n n"] = C + least * torch.eye(n, dtype=C.dtype)
        self.total: Float[Tensor, "n n"] = self.C.sum(0)
        """For what all tasks' models have in common."""

    def directions(self, delta: LowRank) -> LowRank:
        """Deltas of T tasks, unchanged as matrices, as directions whose errors add up in this metric; the largest
        first."""
        parts = [_orthogonal(delta.U[t], delta.S[t], delta.V[t], C) for t, C in enumerate(self.C)]
        return LowRank(*(torch.stack(side).to(delta.S.dtype) for side in zip(*parts, strict=True)))

    def shared(self, delta: LowRank) -> LowRank:
        """`directions` of what all models have in common, a delta with one row."""
        parts = _orthogonal(delta.U[0], delta.S[0], delta.V[0], self.total)
        return LowRank(*(part[None].to(delta.S.dtype) for part in parts))

    def energies(self, delta: LowRank, shared: bool = False) -> Float[Tensor, "rows k"]:
        """Squared size of every direction, over all models that it is in.

        Args:
            delta: of T tasks; none where all models are alike.
            shared: its first row is what all models have in common, and those of the tasks follow.
        """
        C = torch.cat([self.total[None], self.C]) if shared else self.C
        C, V = C[: len(delta.S)], delta.V.double()
        return delta.S.double().square() * ((C @ V) * V).sum(1).clamp_min(0)

    def squared(self, error: Float[Tensor, "m n"]) -> float:
        """Of an error that all models have, over all of them."""
        D = error.double()
        return ((D @ self.total) * D).sum().item()


def _orthogonal(U: Tensor, S: Tensor, V: Tensor, C: Float[Tensor, "n n"]) -> tuple[Tensor, Tensor, Tensor]:
    """U·S·Vᵀ with unit columns in U and V, such that its directions are orthogonal to each other in the metric of C.

    With C = R·Rᵀ and the singular directions of U·S·Vᵀ·R, which are orthogonal, right vectors come back through R⁻ᵀ.
    """
    values, vectors = torch.linalg.eigh(C)
    roots = values.clamp_min(values[-1] * torch.finfo(C.dtype).eps).sqrt()
    right, upper = torch.linalg.qr(roots[:, None] * (vectors.mT @ V.double()))
    left, lower = torch.linalg.qr(U.double() * S.double())
    u, s, wt = torch.linalg.svd(lower @ upper.mT)
    v = vectors @ ((right @ wt.mT) / roots[:, None])
    sizes = v.norm(dim=0).clamp_min(1e-300)
    return left @ u, s * sizes, v / sizes
