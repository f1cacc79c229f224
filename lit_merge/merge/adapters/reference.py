"""The base of adapters: a model that is given, where the origin of a bank is that one or near it at a low rank."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_merge.bank.low_rank import LowRank
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Checkpoint
from lit_merge.checkpoints.adapters.modules import Modules
from lit_merge.merge.adapters.differences import Cut, is_smaller, low_rank_of

Changes = Mapping[str, LowRank | Tensor]


def changes_from(base: Checkpoint, ground: TaskBank, modules: Modules) -> Changes | None:
    """What the origin of a bank adds to a base, by canonical names, without what is rounding; None where an adapter
    cannot hold that: matrices of another kind than linear layers', or differences of a high rank.

    Args:
        base: by the canonical names of the bank, with the same shapes.
        ground: the bank without deltas.
        modules: of the model, by the names in the bank's files.
    """
    found: dict[str, LowRank | Tensor] = {}
    # Small weights first: most origins show there that they are others.
    shapes = ground.shapes
    for name in sorted(shapes, key=lambda name: math.prod(shapes[name])):
        here, there = ground.weight(name), base.read(name)
        if torch.equal(here, there) or not here.is_floating_point():
            continue
        wide = torch.promote_types(torch.promote_types(here.dtype, there.dtype), torch.float32)
        change = here.to(wide) - there.to(wide)
        coarsest = max(torch.finfo(one.dtype).eps for one in (here, there))
        rounding = coarsest * float(there.to(wide).norm())
        if float(change.norm()) <= rounding:
            continue
        parts = ground.naming.place(name).names
        if change.ndim < 2:
            if any(modules.whole(part) is None for part in parts):
                return None
            found[name] = change
            continue
        if change.ndim > 2 or any(modules.linear(part) is None for part in parts):
            return None
        low = low_rank_of(change, Cut(), rounding)
        if low is None or not is_smaller(low):
            return None
        found[name] = low
    return found
