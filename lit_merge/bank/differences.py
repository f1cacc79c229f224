"""What two banks differ in: weights by weights, in the relative Frobenius norm."""

from dataclasses import dataclass, field
from math import hypot

import torch
from torch import Tensor

from lit_merge.bank.low_rank import combine
from lit_merge.bank.task_bank import TaskBank


@dataclass(frozen=True)
class Differences:
    """Of a second bank against a first one, over the tasks and weights that both have.

    Attributes:
        tasks: those that only the first one has, and those that only the second one has.
        weights: likewise, with weights of another shape in both.
        method: whether class or options of the method differ.
        ranks: weight → its two ranks, where they differ.
        coefficients: task → the largest difference of a coefficient, where both have one for each task and weight.
        origin: weight → ‖origin_2 − origin_1‖ / ‖origin_1‖.
        experts: task → weight → ‖θ_2 − θ_1‖ / ‖θ_1‖ of the task's weights, θ = origin + Δ of the task.
        merge: weight → likewise, of the merges at the banks' own coefficients.
        whole_experts: task → likewise, of all its weights together.
        whole_merge: likewise, of the merges.
    """

    tasks: tuple[list[str], list[str]]
    weights: tuple[list[str], list[str]]
    method: bool
    ranks: dict[str, tuple[int | None, int | None]]
    coefficients: dict[str, float]
    origin: dict[str, float] = field(default_factory=dict)
    experts: dict[str, dict[str, float]] = field(default_factory=dict)
    merge: dict[str, float] = field(default_factory=dict)
    whole_experts: dict[str, float] = field(default_factory=dict)
    whole_merge: float = 0.0

    @property
    def none(self) -> bool:
        """Whether both are one bank as far as tasks, weights, values and coefficients go."""
        values = [*self.origin.values(), *self.merge.values(), *self.coefficients.values()]
        values += [value for one in self.experts.values() for value in one.values()]
        return not (any(self.tasks) or any(self.weights) or self.method or self.ranks or any(values))


def differences(one: TaskBank, other: TaskBank) -> Differences:
    """Compares two banks; one weight of each is in memory at a time.

    Args:
        one: the first bank, by whose norms differences are measured.
        other: the second bank.
    """
    shapes = one.shapes, other.shapes
    shared = [name for name in shapes[0] if shapes[1].get(name) == shapes[0][name]]
    both = [task for task in one.tasks if task in other.tasks]
    lone = one.shared or other.shared
    merges = {name: _norms(*(bank.weight(name, torch.float32) for bank in (one, other))) for name in shared}
    experts = {
        task: {name: _norms(*(_of_task(bank, name, task) for bank in (one, other))) for name in shared}
        for task in ([] if lone else both)
    }
    return Differences(
        tasks=_alone(one.tasks, other.tasks),
        weights=([n for n in shapes[0] if n not in shared], [n for n in shapes[1] if n not in shared]),
        method=one.method != other.method,
        ranks={
            name: (one.ranks.get(name), other.ranks.get(name))
            for name in shared
            if one.ranks.get(name) != other.ranks.get(name)
        },
        coefficients={} if lone else _coefficients(one, other, both),
        origin={name: _relative(_norms(one.origin[name], other.origin[name])) for name in shared},
        experts={task: {name: _relative(norms) for name, norms in found.items()} for task, found in experts.items()},
        merge={name: _relative(norms) for name, norms in merges.items()},
        whole_experts={task: _relative(*found.values()) for task, found in experts.items()},
        whole_merge=_relative(*merges.values()),
    )


def _norms(one: Tensor, other: Tensor) -> tuple[float, float]:
    """‖other − one‖ and ‖one‖."""
    size = one.double().norm().item()
    return (0.0, size) if torch.equal(one, other) else ((other.double() - one.double()).norm().item(), size)


def _relative(*norms: tuple[float, float]) -> float:
    """Of one weight or several together, the first norm through the second; where the second is zero, infinite unless
    both are."""
    distance, size = (hypot(*one) for one in zip(*norms, strict=True)) if norms else (0.0, 0.0)
    return distance / size if size else float("inf") if distance else 0.0


def _of_task(bank: TaskBank, name: str, task: str) -> Tensor:
    """origin + Δ of one weight and one task."""
    delta = bank.deltas.get(name)
    only = torch.zeros(len(bank.tasks))
    only[bank.tasks.index(task)] = 1
    return combine(bank.origin[name], delta, only, torch.float32)


def _alone(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[list[str], list[str]]:
    return [task for task in one if task not in other], [task for task in other if task not in one]


def _coefficients(one: TaskBank, other: TaskBank, tasks: list[str]) -> dict[str, float]:
    layers = [name for name in one.layers if name in other.deltas]
    places = [[bank.column_of[name] for name in layers] for bank in (one, other)]
    found = {}
    for task in tasks:
        rows = [
            bank.coefficients[bank.tasks.index(task), place].double()
            for bank, place in zip((one, other), places, strict=True)
        ]
        found[task] = (rows[1] - rows[0]).abs().amax().item() if layers else 0.0
    return found
