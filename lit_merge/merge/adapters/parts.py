"""What an adapter holds of one task, or of the merge: which layer by two factors, which module whole, and what not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lit_merge.bank.low_rank import LowRank
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Naming, modernised, rename
from lit_merge.checkpoints.adapters.modules import Modules
from lit_merge.checkpoints.adapters.writer import Adapter
from lit_merge.merge.adapters.differences import Cut, added, by_parts, change_of, is_smaller, low_rank_of, relative
from lit_merge.merge.adapters.reference import Changes

Rest = Literal["adapter", "base"]
"""Where what is no low-rank matrix of a linear layer goes: whole into each adapter, or into the base."""


@dataclass(frozen=True)
class View:
    """What one adapter is of.

    Attributes:
        name: of its folder.
        bank: with the coefficients of one task alone, or those of the merge.
        naming: of the files.
        heads: weights that are not the bank's and belong to this task, as a classifier, by their names in the files.
        tied: the embeddings that are the output layer too, which the files do not hold a second time.
    """

    name: str
    bank: TaskBank
    naming: Naming
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    tied: str | None = None

    def values(self, name: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """A weight of the bank, by the names of its parts in the files."""
        return {modernised(part): value for part, value in self.named({name: self.bank.weight(name, dtype)}).items()}

    def named(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(weights, self.naming)

    def changes(self, ground: Changes) -> dict[str, LowRank | Tensor]:
        """What it adds to the base, by the names in the files. The origin adds `ground` to it."""
        found: dict[str, LowRank | Tensor] = {}
        for name in self.bank.origin:
            change = added(ground.get(name), change_of(self.bank, name))
            if change is not None:
                place = self.naming.place(name)
                found |= by_parts(change, [modernised(part) for part in place.names], place.transposed)
        return found


@dataclass
class Held:
    """An adapter, and what it leaves as the base has it: canonical name → the difference as a share."""

    adapter: Adapter
    left: dict[str, float]


def hold(view: View, modules: Modules, ground: Changes, cut: Cut, rest: Rest, dtype: torch.dtype | None) -> Held:
    """Sorts what a view adds to the base.

    Args:
        view: a task, or the merge.
        modules: of the model, by the names in the files.
        ground: what the origin of the bank adds to the base, by canonical names.
        cut: directions that are kept.
        rest: where what is not low-rank goes.
        dtype: of all that is written; None keeps the bank's for factors, and the experts' for whole weights.
    """
    low: dict[str, LowRank] = {}
    biases: dict[str, Tensor] = {}
    others: list[str] = []
    for part, change in view.changes(ground).items():
        if (linear := modules.linear(part)) is None:
            if (module := modules.bias(part)) is not None and rest == "adapter":
                biases[module] = change if isinstance(change, Tensor) else change.to_dense()[0]
            else:
                others.append(part)
            continue
        factors = low_rank_of(change, cut) if isinstance(change, Tensor) else cut.of(change)
        if factors is None or not is_smaller(factors):
            others.append(part)
        elif factors.rank:
            low[linear.module] = factors
    if biases and not all(map(modules.has_bias, low)):
        # PEFT gives all layers a bias, or none, and cannot merge one into a layer without.
        others += [f"{module}.bias" for module in biases]
    others += [f"{module}.bias" for module in biases if module not in low]
    whole = _outermost({module for part in others if rest == "adapter" and (module := modules.whole(part))})
    left = [part for part in others if rest == "base" or modules.whole(part) is None]
    adapter = Adapter(transposed=modules.transposed)
    for module, factors in low.items():
        if not _inside(module, whole):
            adapter.low_rank[module] = _factors(factors, modules.transposed, dtype)
    adapter.biases = {
        module: value.to(adapter.low_rank[module][0].dtype)
        for module, value in biases.items()
        if module in adapter.low_rank
    }
    adapter.whole = _whole(view, modules, whole, dtype) | _heads(view.heads, dtype)
    for weights in list(adapter.whole.values()):
        if view.tied in weights:
            # PEFT gives the embeddings a copy of their own, and leaves the output layer what it was.
            adapter.whole["lm_head"] = {"lm_head.weight": weights[view.tied]}
    return Held(adapter, _differing(view, left, ground))


def _factors(change: LowRank, transposed: bool, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """B (out, r) and A (r, in), each with the roots of the singular values."""
    roots = change.S[0].sqrt()
    out, inner = change.U[0] * roots, change.V[0] * roots
    if transposed:
        out, inner = inner, out
    return out.to(dtype or change.U.dtype), inner.mT.to(dtype or change.U.dtype)


def _outermost(modules: set[str]) -> list[str]:
    return sorted(one for one in modules if not _inside(one, modules - {one}))


def _inside(module: str, modules: "set[str] | list[str]") -> bool:
    return any(module == other or module.startswith(f"{other}.") for other in modules)


def _whole(view: View, modules: Modules, whole: list[str], dtype: torch.dtype | None) -> dict[str, dict[str, Tensor]]:
    """Module → all its weights, with the view's values."""
    wanted = {name: module for module in whole for name in modules.weights(module)}
    found: dict[str, dict[str, Tensor]] = {module: {} for module in whole}
    for name in view.bank.origin:
        parts = [modernised(part) for part in view.naming.place(name).names]
        if any(part in wanted for part in parts):
            for part, value in view.values(name, dtype).items():
                if part in wanted:
                    # A part's own memory: files hold what is contiguous.
                    found[wanted[part]][part] = value.contiguous()
    return found


def _heads(heads: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in heads.items():
        kind = dtype if dtype is not None and value.is_floating_point() else value.dtype
        found.setdefault(name.partition(".")[0], {})[name] = value.to(kind)
    return found


def _differing(view: View, parts: list[str], ground: Changes) -> dict[str, float]:
    left = set(parts)
    names = [n for n in view.bank.origin if left & {modernised(part) for part in view.naming.place(n).names}]
    changes = {name: added(ground.get(name), change_of(view.bank, name)) for name in names}
    return {name: relative(one, view.bank.origin[name]) for name, one in changes.items() if one is not None}
