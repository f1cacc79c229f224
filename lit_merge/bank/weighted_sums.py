"""origin + Σ_t λ_t·Δ_t of one weight, with an exact, small backward: ∂L/∂λ_t = ⟨∂L/∂W, Δ_t⟩.

A coefficient of a single direction, λ_tr, has the gradient s_r·u_rᵀ (∂L/∂W) v_r: what ∂L/∂λ_t is the sum of.

The sums lie where the coefficients lie. Origin and deltas may lie elsewhere, as in pinned memory of a bank that is too
large for the device: they are moved when they are needed, in the forward and again in the backward, and not kept.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# AdaRank's: how wide around the threshold a mask's logit still feels a gradient.
TEMPERATURE = 10.0


def dense_sum(
    coefficients: Float[Tensor, " T"], origin: Float[Tensor, "..."], deltas: Float[Tensor, "T ..."]
) -> Float[Tensor, "..."]:
    """origin + Σ_t coefficients[t]·deltas[t] in the dtype of `origin`, differentiable in both."""
    total: Tensor = _DenseSum.apply(coefficients, origin, deltas)
    return total


def low_rank_sum(
    coefficients: Float[Tensor, " T"] | Float[Tensor, "T r"],
    origin: Float[Tensor, "m n"],
    u: Float[Tensor, "T m r"],
    s: Float[Tensor, "T r"],
    v: Float[Tensor, "T n r"],
    logits: Float[Tensor, "T r"] | None = None,
) -> Float[Tensor, "m n"]:
    """`LowRank.weighted_sum` of these factors."""
    total: Tensor = _LowRankSum.apply(coefficients, origin, u, s, v, logits)
    return total


def _moved(value: Tensor, like: Tensor) -> Tensor:
    """The value where `like` lies and in its dtype. Crosses in its own dtype, which is never wider than needed."""
    return value.to(like.device, non_blocking=True).to(like.dtype)


def _aligned(device: torch.device) -> bool:
    """Whether tensors begin at whole cache lines there, so that products have the same bits wherever a bank came from.

    In the memory of the CPU one that was mapped from a file begins anywhere, and the last bits of a product depend on
    it; element by element they do not.
    """
    return device.type != "cpu"


class _DenseSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, origin: Tensor, deltas: Tensor) -> Tensor:
        ctx.save_for_backward(deltas)
        ctx.coefficients, ctx.origin = coefficients.dtype, origin.device
        weights = coefficients.to(origin.dtype)
        if _aligned(weights.device):
            flat = torch.addmv(_moved(origin, weights).flatten(), _moved(deltas, weights).flatten(1).T, weights)
            return flat.view(origin.shape)
        # In place: fresh memory for every task would take longer than the sum.
        total = origin.clone(memory_format=torch.contiguous_format)
        for one, weight in zip(deltas, weights, strict=True):
            total.addcmul_(_moved(one, weight), weight)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (deltas,) = ctx.saved_tensors
        flat = gradient.flatten()
        if _aligned(gradient.device):
            products = _moved(deltas, flat).flatten(1) @ flat
        else:
            place = torch.empty_like(gradient, memory_format=torch.contiguous_format)
            products = torch.stack([torch.dot(place.copy_(one).flatten(), flat) for one in deltas])
        return products.to(ctx.coefficients), gradient.to(ctx.origin) if ctx.needs_input_grad[1] else None, None


class _LowRankSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, coefficients: Tensor, origin: Tensor, u: Tensor, s: Tensor, v: Tensor, logits: Tensor | None
    ) -> Tensor:
        ctx.dtype, ctx.origin = coefficients.dtype, origin.device
        origin = origin.to(coefficients.device, non_blocking=True)
        if logits is None:
            ctx.save_for_backward(u, s, v)
        else:
            ctx.save_for_backward(u, s, v, coefficients, logits)
        s = s.to(coefficients.device, non_blocking=True)
        if logits is not None:
            s = s * (logits > 0)
        ctx.by_direction = coefficients.dim() == 2
        scaled = (s * _columns(coefficients)).to(origin.dtype).flatten()
        return torch.addmm(origin, _side_by_side(u, origin).mul_(scaled), _side_by_side(v, origin).T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        u, s, v, *masked = ctx.saved_tensors
        products = (gradient @ _side_by_side(v, gradient)).mul_(_side_by_side(u, gradient)).sum(0)
        per_direction = products.view_as(s) * s.to(gradient.device, non_blocking=True)
        to_origin = gradient.to(ctx.origin) if ctx.needs_input_grad[1] else None
        if not masked:
            found = per_direction if ctx.by_direction else per_direction.sum(1)
            return found.to(ctx.dtype), to_origin, None, None, None, None
        coefficients, logits = masked
        used = per_direction * (logits > 0)
        to_coefficients = (used if ctx.by_direction else used.sum(1)).to(ctx.dtype)
        soft = torch.sigmoid(logits / TEMPERATURE)
        to_logits = _columns(coefficients) * per_direction * soft * (1 - soft) / TEMPERATURE
        return to_coefficients, to_origin, None, None, None, to_logits.to(logits.dtype)


def _columns(coefficients: Float[Tensor, " T"] | Float[Tensor, "T r"]) -> Float[Tensor, "T _"]:
    """A column that serves all directions of a task, or a coefficient for each of them."""
    return coefficients if coefficients.dim() == 2 else coefficients[:, None]


def _side_by_side(factor: Float[Tensor, "T m r"], like: Tensor) -> Float[Tensor, "m Tr"]:
    """The directions of all tasks as columns of one matrix, where `like` lies and in its dtype.

    Always a fresh copy: a product's last bits depend on strides and on alignment, which differ between a tensor that
    was computed and the same tensor from a file.
    """
    return torch.cat(_moved(factor, like).unbind(), dim=1)
