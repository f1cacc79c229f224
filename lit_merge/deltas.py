"""What is added to one weight of the origin, of all tasks, and the sum."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lit_merge.low_rank import LowRank
from lit_merge.weighted_sums import dense_sum

# Low-rank, or dense (T, …).
Delta = LowRank | Tensor


def kinds(delta: Delta) -> tuple[str, ...]:
    """What the tensors of `tensors_of` are called in files."""
    return ("U", "S", "V") if isinstance(delta, LowRank) else ("delta",)


def tensors_of(delta: Delta) -> tuple[Tensor, ...]:
    """The factors, or the one tensor."""
    return (delta.U, delta.S, delta.V) if isinstance(delta, LowRank) else (delta,)


def combine(
    origin: Shaped[Tensor, "..."],
    delta: Delta | None,
    coefficients: Float[Tensor, " rows"] | None,
    dtype: torch.dtype,
    logits: Tensor | None = None,
) -> Shaped[Tensor, "..."]:
    """origin + Σ_t coefficients[t] · Δ[t] of one weight, in `dtype`; the origin alone where there is no delta."""
    if delta is not None and coefficients is not None and origin.is_floating_point():
        # Sums of small differences on large weights: never in half precision, and as precise as the coefficients.
        origin = origin.to(torch.promote_types(coefficients.dtype, torch.promote_types(origin.dtype, torch.float32)))
        if isinstance(delta, LowRank):
            logits = None if logits is None else logits[..., : delta.rank]
            origin = delta.weighted_sum(origin, coefficients, logits)
        else:
            origin = dense_sum(coefficients, origin, delta)
    return origin.to(dtype) if origin.is_floating_point() else origin
