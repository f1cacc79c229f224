"""Deltas of layers of one kind, weighed against each other by their norms."""

import re
from collections import defaultdict

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.gram import norms_of
from lit_merge.bank.low_rank import Delta, LowRank


def relative(values: Float[Tensor, "..."], mean: Tensor) -> Float[Tensor, "..."]:
    """values / mean, 0 where there is nothing to compare: every value is then 0."""
    return torch.where(mean > 0, values / mean, 0)


def emphasis(norms: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """(‖x_i‖ / mean_j ‖x_j‖)²: what is large becomes larger."""
    return relative(norms, norms.mean()).square()


def layer_level(deltas: dict[str, Delta], weighed: set[str]) -> dict[str, Delta]:
    """ΔW_l · (‖ΔW_l‖_F / mean over layers of the same kind)² for the names in `weighed`; ΔW_l sums over the tasks.

    Of the same kind are weights of one shape whose names differ in the block's number only. One that is alone is its
    own mean: its factor is 1.
    """
    norms: dict[str, Tensor] = {}
    kinds: dict[object, list[str]] = defaultdict(list)
    for name, delta in deltas.items():
        if name in weighed and isinstance(delta, LowRank):
            tasks, *shape = delta.shape
            one, zero = delta.S.new_ones(tasks, dtype=torch.float64), delta.S.new_zeros(shape, dtype=torch.float64)
            norms[name] = norms_of(delta.weighted_sum(zero, one).view(1, -1), -1)[0]
            kinds[re.sub(r"(^|\.)\d+\.", r"\1#.", name, count=1), tuple(shape)].append(name)
    done = dict(deltas)
    for names in kinds.values():
        for name, beta in zip(names, emphasis(torch.stack([norms[name] for name in names])), strict=True):
            delta = deltas[name]
            assert isinstance(delta, LowRank)
            done[name] = delta * beta.to(delta.S.dtype)
    return done
