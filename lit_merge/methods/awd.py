"""AWD: adaptive weight disentanglement, one vector that all task vectors share taken out (arXiv 2411.18729)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.experts.inner_products import cosines, count_pairs, gram_matrices, gram_of_rest, mean_cos, moved
from lit_merge.experts.stream import Change
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import Transform

_PATIENCE = 100
"""Steps without a new minimum after which the descent ends: around the kinks of |cos| dozens of steps only rise."""


def disentangle(
    gram: Float[Tensor, "*L T T"], alpha: float, step: float, steps: int
) -> tuple[Float[Tensor, "*L T"], Float[Tensor, "n *L T"]]:
    """Gradient descent from δ = 0 on L(δ) = mean_{i≠j} |cos(τ_i − δ, τ_j − δ)| + α‖δ‖₂, in the span of the τ_t.

    Args:
        gram: ⟨τ_i, τ_j⟩, float64; of several weights too, each with a δ of its own.
        alpha: weight of ‖δ‖₂, in the units of `gram`.
        step: of plain gradient descent, likewise.
        steps: how many at most.

    Returns:
        The c of δ = Σ_t c_t τ_t with the smallest L, and c before every step and after the last (n ≤ steps + 1).

    >>> disentangle(torch.eye(3, dtype=torch.float64), 0.1, 0.01, 300)[0]
    tensor([0., 0., 0.], dtype=torch.float64)
    """
    c = kept = torch.zeros_like(gram[..., 0])
    lowest = torch.full_like(c[..., 0], torch.inf)
    waited = torch.zeros_like(lowest)
    history = []
    for _ in range(steps + 1):
        history.append(c)
        loss, gradient = loss_and_gradient(gram, c, alpha)
        falls = (loss < lowest) & (waited < _PATIENCE)
        kept, lowest = torch.where(falls[..., None], c, kept), torch.where(falls, loss, lowest)
        waited = torch.where(falls, 0, waited + 1)
        if (waited >= _PATIENCE).all():
            break
        c = c - step * gradient
    return kept, torch.stack(history)


def loss_and_gradient(
    gram: Float[Tensor, "*L T T"], c: Float[Tensor, "*L T"], alpha: float
) -> tuple[Float[Tensor, "*L"], Float[Tensor, "*L T"]]:
    """L at δ = Σ_t c_t τ_t, and the coefficients of ∇L(δ), which lies in the span of the τ_t too.

    With φ_i = τ_i − δ and n_i = ‖φ_i‖, the derivative of cos_ij with respect to φ_i is φ_j/(n_i n_j) − cos_ij φ_i/n_i²,
    and that of φ_i with respect to δ is −1. Over the N ordered pairs, each counted from both ends:

        ∇L = Σ_i w_i φ_i + α δ/‖δ‖,   w_i = −(2/N) Σ_{j≠i} sign(cos_ij) (1/(n_i n_j) − cos_ij/n_i²)

    Since Σ_i w_i φ_i = Σ_i w_i τ_i − (Σ_i w_i) δ, its coefficients are w − (Σ_i w_i) c + α c/‖δ‖; the subgradients at
    cos_ij = 0 and at δ = 0 are 0. So the descent in c makes the very steps of the descent in δ.
    """
    cos, inverse = cosines(gram_of_rest(gram, c))
    pairs = count_pairs(gram).clamp_min(1)
    length = torch.einsum("...i,...ij,...j->...", c, gram, c).clamp_min(0).sqrt()
    slopes = cos.sign() * (inverse[..., :, None] * inverse[..., None, :] - cos * inverse[..., :, None].square())
    w = -2 * slopes.sum(-1) / pairs[..., None]
    pull = torch.where(length > 0, alpha / length, 0.0)
    return cos.abs().sum((-1, -2)) / pairs + alpha * length, w + (pull - w.sum(-1))[..., None] * c


@dataclass(frozen=True, eq=False)
class Disentangled:
    """The change that AWD makes: θ_t − δ for every expert whose task vector is not zero.

    Attributes:
        coefficients: name of a weight → c (T,), the share of every task vector in δ there.
        subtract: name of a weight → which experts δ is subtracted from.
        report: `delta_norm` is ‖δ‖₂ over all weights; `mean_cos_before` and `mean_cos_after` are mean_{i≠j} |cos| of
            the whole task vectors.
    """

    coefficients: Mapping[str, Float[Tensor, " T"]]
    subtract: Mapping[str, Bool[Tensor, " T"]]
    report: dict[str, float]

    def __call__(self, weight: Weight) -> Weight:
        vectors = weight.task_vectors
        delta = torch.tensordot(self.coefficients[weight.name].to(vectors), vectors, 1)
        experts, there = weight.experts.clone(), self.subtract[weight.name]
        experts[there] -= delta
        if weight.vectors is None:
            return replace(weight, experts=experts)
        vectors = vectors.clone()
        vectors[there] -= delta
        return replace(weight, experts=experts, vectors=vectors, updates=None)


@dataclass(frozen=True)
class AWD(Transform):
    """φ_t = τ_t − δ in place of τ_t, with the δ that minimises mean_{i≠j} |cos(φ_i, φ_j)| + alpha·‖δ‖₂; δ is not added
    back. Plain gradient descent from 0, of which the iterate with the smallest value is kept; it ends early once the
    value did not fall for 100 steps. δ stays in the span of the task vectors, so the descent needs only their Gram
    matrix (T×T), which one pass over the experts makes in float64.

    An expert that equals the base (with `granularity: tensor`, in one weight) shares nothing: it is left out of the
    cosines and keeps its zero task vector.

    Use it in front of methods that start from the pretrained checkpoint, where `analyze` shows task vectors with a
    large mean |cos|; where they are nearly orthogonal already it changes little.

    Args:
        alpha: weight of ‖δ‖₂, in units of the root mean square norm s of the task vectors.
        step: of the descent, in the same units.
        steps: how many at most.
        granularity: one δ over the whole `model`, or one for every `tensor` by itself.
        literal: the paper's own alpha and step, on vectors that are not scaled; this is `alpha·s` and `step/s²` here.

    Raises:
        MergeError: a negative alpha, a step or a number of steps that is not positive.
    """

    alpha: float = 0.1
    step: float = 0.01
    steps: int = 300
    granularity: Literal["model", "tensor"] = "model"
    literal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < float("inf"):
            raise MergeError(f"alpha={self.alpha}: expected a number from 0 up, 0.1 in the paper")
        if not 0 < self.step < float("inf"):
            raise MergeError(f"step={self.step}: expected a positive number, 0.01 in the paper")
        if self.steps < 1:
            raise MergeError(f"steps={self.steps}: expected at least 1, 300 in the paper")
        if self.granularity not in ("model", "tensor"):
            raise MergeError(f"granularity={self.granularity!r}: expected model or tensor")

    def fit(self, experts: Experts) -> Change:
        """One pass over all experts, then the descent.

        Raises:
            MergeError: two experts that are identical, so that nothing can part them; no base.
        """
        names, grams = gram_matrices(experts)
        total = grams.sum(0)
        units = total[None] if self.granularity == "model" else grams
        scale = torch.ones_like(units[:, 0, 0])
        if not self.literal:
            # A weight in which no expert moved has no scale of its own, and needs none.
            diagonals, count = units.diagonal(dim1=-2, dim2=-1).sum(-1), moved(units).sum(-1)
            scale = torch.where(count > 0, diagonals / count, 1.0)
        c, _ = disentangle(units / scale[:, None, None], float(self.alpha), float(self.step), self.steps)
        rest = gram_of_rest(units, c).sum(0)
        report = {
            "delta_norm": torch.einsum("li,lij,lj->", c, units, c).clamp_min(0).sqrt().item(),
            "mean_cos_before": mean_cos(total, total),
            "mean_cos_after": mean_cos(rest, total),
        }
        rows = len(names)
        coefficients, subtract = c.expand(rows, -1), moved(units).expand(rows, -1)
        by_name = dict(zip(names, coefficients, strict=True)), dict(zip(names, subtract, strict=True))
        return Disentangled(*by_name, report)
