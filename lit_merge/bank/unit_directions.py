"""Deltas as directions: pairs of unit vectors with a size each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_merge.bank.low_rank import LowRank
from lit_merge.bank.packing import sides_of


def wide(value: Tensor) -> torch.dtype:
    """Float32, or the value's own precision where that is wider."""
    return torch.promote_types(value.dtype, torch.float32)


def directions_of(matrices: Tensor) -> LowRank:
    """Of dense values (T, …): vectors have one each."""
    m, n = sides_of(tuple(matrices.shape[1:]))
    flat = matrices.reshape(len(matrices), m, n)
    if min(m, n) > 1:
        return LowRank.from_dense(flat, min(m, n))
    sizes = flat.flatten(1).norm(dim=-1)
    unit = flat / sizes.clamp_min(1e-30)[:, None, None]
    one = unit.new_ones(len(flat), 1, 1)
    u, v = (one, unit.mT) if m == 1 else (unit, one)
    return LowRank(u, sizes[:, None], v)


def normalised(delta: LowRank) -> LowRank:
    """With singular vectors of length 1."""
    u, v = delta.U.to(delta.S.dtype), delta.V.to(delta.S.dtype)
    sizes = [factor.norm(dim=1, keepdim=True).clamp_min(1e-30) for factor in (u, v)]
    return LowRank(u / sizes[0], delta.S * sizes[0][:, 0] * sizes[1][:, 0], v / sizes[1])


def stacked(parts: Sequence[LowRank]) -> LowRank:
    """Rows of one weight together; the shorter ones end with singular values of 0."""
    k = max(part.rank for part in parts)
    padded = [[torch.nn.functional.pad(one, (0, k - part.rank)) for one in (part.U, part.S, part.V)] for part in parts]
    return LowRank(*(torch.cat([one.float() for one in side]) for side in zip(*padded, strict=True)))
