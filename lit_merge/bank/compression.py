"""A bank in as few bytes as are allowed: which directions of which weights are stored in which type.

The error is the squared Frobenius norm of what is left out, over all weights of all tasks' models. Directions of one
matrix are orthogonal, so their errors add up. What is common to all tasks, the origin, counts once for every task.
With second moments of what flows into the weights it is, for these, the mean squared change of their outputs, the
metric of ESM (arXiv 2602.20208).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_merge.bank.base_reference import check_base
from lit_merge.bank.budget import Parts, Steps, best_first
from lit_merge.bank.feature_metric import FeatureMetric, Moments
from lit_merge.bank.learnt import DIRECTIONS, of_weight
from lit_merge.bank.low_rank import LowRank
from lit_merge.bank.on_demand import without_values
from lit_merge.bank.packed_tensors import squared_sines
from lit_merge.bank.packing import BASE, Packed, sides_of, sides_stored
from lit_merge.bank.storage_types import TYPES, StorageType, pack_rows, unpack_rows
from lit_merge.bank.task_bank import TaskBank
from lit_merge.bank.unit_directions import directions_of, normalised, stacked, wide
from lit_merge.checkpoints import Checkpoint
from lit_merge.errors import MergeError

Levels = NDArray[np.int64]
# Fine types come first. Of directions and origins, where none is asked for.
AUTOMATIC = ("float16", "int8", "int4")
# Of every delta, so many directions say how much of a direction a type keeps.
SAMPLE = 16
# Bytes: directions of a smaller bank are kept in memory between planning and writing.
SMALL = 2**28


@dataclass(frozen=True)
class Choice:
    """How every weight is stored.

    Attributes:
        weights: name → what lies in the file.
        left: weight → squared error of its stored deltas over all tasks, and with it the deltas' energy.
        origin: weight → squared error of its stored origin, and the origin's energy.
    """

    weights: dict[str, Packed]
    left: dict[str, tuple[float, float]]
    origin: dict[str, tuple[float, float]]

    @property
    def kept(self) -> dict[str, float]:
        """Weight → the share of its deltas' energy that is kept, to four digits."""
        return {name: round(1 - left / whole, 4) for name, (left, whole) in self.left.items() if whole}


class Compression:
    """A bank about to be stored in fewer bytes: looked at once, weight by weight.

    Args:
        bank: what is stored; may lie in a file.
        dtype: one storage type for all, see `TYPES`; None takes what pays, of float16, int8 and four bits.
        base: with it the origin is stored as a difference from this checkpoint, by canonical names.
        moments: task → weight → E[x xᵀ] (n, n) of the weight's inputs; None measures errors in the Frobenius norm.

    Raises:
        MergeError: a base that lacks a weight of the bank, or has it in another shape; weights in int8.
    """

    def __init__(
        self,
        bank: TaskBank,
        dtype: str | None = None,
        base: Checkpoint | None = None,
        moments: Moments | None = None,
    ) -> None:
        self.bank, self.base, self.moments = bank, base, moments
        self.types = AUTOMATIC if dtype is None else (dtype,)
        if base is not None:
            check_base(bank.shapes, base)
        self.rows = len(bank.coefficients)
        self.orders: dict[str, Tensor] = {}
        self._kept: dict[str, LowRank] = {}
        self.parts: dict[str, Parts] = {}
        for name in bank.origin:
            self._survey(name)
        self.steps: Steps = best_first(self.parts)

    @property
    def least(self) -> int:
        """Number of steps that are taken whatever the budget: every origin in its coarsest type."""
        return sum(part.needed * part.energies.size for part in self.parts.values())

    def choice(self, steps: Steps, count: int) -> Choice:
        """What is stored once the first `count` steps are taken."""
        levels = steps.after(count)
        found = Choice({}, {}, {})
        for name, shape in self.bank.shapes.items():
            found.weights[name] = self._packed(name, shape, levels)
            if (key := f"origin/{name}") in levels:
                found.origin[name] = _error(self.parts[key], levels[key])
            if (key := f"delta/{name}") in levels:
                first = int(self.base is not None)
                if first:
                    found.origin[name] = _error(self.parts[key], levels[key], slice(1))
                found.left[name] = _error(self.parts[key], levels[key], slice(first, None))
        return found

    def directions(self, name: str, metric: FeatureMetric | None = None) -> LowRank:
        """All directions of a weight: unit vectors, from the largest singular value. The first row is the origin's
        difference from the base, where there is one."""
        if name in self._kept:
            return self._kept[name]
        parts = []
        metric = metric or self._metric(name)
        if self.base is not None:
            value = self.bank.origin[name]
            moved = directions_of((value.double() - self.base.read(name).double()).to(wide(value))[None])
            parts.append(moved if metric is None else metric.shared(moved))
        if name in self.bank.deltas:
            delta = self.bank.deltas[name]
            own = normalised(delta) if isinstance(delta, LowRank) else directions_of(delta.to(wide(delta)))
            if metric is not None and self._learnt(name) is None:
                # Directions that have a coefficient each stay what they are.
                parts.append(metric.directions(own))
            else:
                order = self.orders[name] = self._order(name, own, metric)
                parts.append(own.take(order))
        found = stacked(parts)
        if self.bank.nbytes <= SMALL:
            self._kept[name] = found
        return found

    def _metric(self, name: str) -> FeatureMetric | None:
        """What errors of a weight are measured by; None is the Frobenius norm."""
        if self.moments is None:
            return None
        own = [self.moments[task].get(name) for task in self.bank.tasks]
        found = [moment for moment in own if moment is not None]
        if len(found) < len(own):
            return None
        # Where all tasks have one delta there is one model, and what flows into it is what all tasks' inputs make.
        found = found if self.rows == len(found) else [torch.stack(found).mean(0)]
        return FeatureMetric(found, self.bank.shapes[name][1])

    def _energies(self, name: str, found: LowRank, metric: FeatureMetric | None) -> Tensor:
        """Squared size (rows, k) of every direction, over all models that it is in; of directions that have
        coefficients as the merge uses them."""
        first = int(self.base is not None)
        if metric is None:
            energies = found.S.double().square()
            energies[:first] *= self.rows
        else:
            energies = metric.energies(found, shared=bool(first))
        learnt = self._learnt(name)
        if learnt is not None:
            learnt = learnt.gather(-1, self.orders[name]).double().square()
            energies[first:] *= torch.nn.functional.pad(learnt, (0, energies.shape[-1] - learnt.shape[-1]))
        return energies

    def _order(self, name: str, delta: LowRank, metric: FeatureMetric | None) -> Tensor:
        """Positions of the directions, from what contributes most."""
        weights = delta.S.abs() if metric is None else metric.energies(delta).sqrt()
        learnt = self._learnt(name)
        if learnt is not None:
            weights = weights * learnt.abs()
        return weights.argsort(dim=-1, descending=True, stable=True)

    def _learnt(self, name: str) -> Tensor | None:
        """λ of every direction of a weight, where these have coefficients of their own."""
        return of_weight(self.bank.learnt, name).get(DIRECTIONS)

    def _survey(self, name: str) -> None:
        """What can be stored of one weight."""
        origin = self.bank.origin[name]
        if origin.dtype == torch.int8:
            raise MergeError(f"{name} is int8, which a compressed bank has for scaled numbers only", weight=name)
        if not origin.is_floating_point() or not origin.numel():
            return
        metric = self._metric(name)
        if self.base is None:
            self.parts[f"origin/{name}"] = self._origin_part(origin, metric)
        if self.base is None and name not in self.bank.deltas:
            return
        found = self.directions(name, metric)
        energies = self._energies(name, found, metric)
        m, n = sides_of(self.bank.shapes[name])
        sides = {"U": m, "V": n}
        stored = {TYPES[kind] for kind in self.types}
        nbytes = {one.name: 4 + sum(one.nbytes(sides[side]) for side in sides_stored(m, n)) for one in stored}
        self.parts[f"delta/{name}"] = Parts(energies.numpy(), _kept(found, stored, sides_stored(m, n)), nbytes)

    def _origin_types(self, origin: Tensor) -> list[str]:
        """In which an origin may be stored: integers where it has rows, unlike vectors and numbers."""
        half = "float16" if origin.abs().amax() < torch.finfo(torch.float16).max else "bfloat16"
        asked = [half if kind == "float16" else kind for kind in self.types]
        wide = ["float32"] if len(self.types) > 1 and origin.dtype.itemsize > 2 else []
        if origin.dim() < 2:
            asked = [kind for kind in asked if not TYPES[kind].is_integer] or [half]
        return list(dict.fromkeys(["int8" if kind == "int4" else kind for kind in asked] + wide))

    def _origin_part(self, origin: Tensor, metric: FeatureMetric | None) -> Parts:
        """The origin of one weight, which all tasks have."""
        value, types = origin.double(), self._origin_types(origin)

        def squared(error: Tensor) -> float:
            if metric is not None:
                return metric.squared(error)
            return self.rows * error.square().sum().item()

        energy = squared(value)
        kept = {}
        for kind in types:
            read = unpack_rows(*pack_rows(origin)) if kind == "int8" else origin.to(TYPES[kind].dtype)
            kept[kind] = 1 - squared(read.double() - value) / energy if energy else 1.0
        scales = 2 * (origin.shape[0] if origin.dim() else 1)
        nbytes = {kind: TYPES[kind].nbytes(origin.numel()) + (scales if kind == "int8" else 0) for kind in types}
        return Parts(np.array([energy]), kept, nbytes, needed=True)

    def _packed(self, name: str, shape: tuple[int, ...], levels: Mapping[str, Levels]) -> Packed:
        if (key := f"origin/{name}") in levels:
            stored = self.parts[key].ladder[int(levels[key][0]) - 1]
        elif self.base is not None and f"delta/{name}" in levels:
            stored = BASE
        else:
            own = without_values(self.bank.origin)[name]
            stored = "float32" if own.is_floating_point() else str(own.dtype).removeprefix("torch.")
        ranks = {}
        if (key := f"delta/{name}") in levels:
            ladder, rows = self.parts[key].ladder, self.rows + (self.base is not None)
            for kind in TYPES:
                if kind in ladder and (chosen := levels[key] == ladder.index(kind) + 1).any():
                    counts = tuple(int(count) for count in chosen.sum(-1))
                    ranks[kind] = counts + (0,) * (rows - len(counts))
        return Packed(shape, stored, ranks)


def _kept(found: LowRank, types: set[StorageType], sides: str) -> dict[str, float]:
    """Type → the share of a direction's energy that is kept in it, mean over some of the directions."""
    energies = found.S[:, :SAMPLE].double().square()
    shares = {}
    for kind in types:
        kept = torch.ones_like(energies)
        for side in sides:
            some = getattr(found, side)[..., :SAMPLE]
            kept = kept * (1 - torch.stack([squared_sines(kind, row) for row in some]))
        shares[kind.name] = float((kept * energies).sum() / energies.sum().clamp_min(1e-300))
    return shares


def _error(part: Parts, levels: Levels, rows: slice = slice(None)) -> tuple[float, float]:
    """Squared error of parts that are stored so, and their energy."""
    kept = np.array([0.0, *(part.kept[kind] for kind in part.ladder)])
    energies = part.energies[rows]
    return float((energies * (1 - kept[levels[rows]])).sum()), float(energies.sum())
