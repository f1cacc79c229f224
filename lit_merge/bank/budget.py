"""Where the bytes of a budget go: to what removes most error per byte.

A part of a bank (a direction of a task's delta, a vector, an origin) costs more bytes in a finer storage type, and then
leaves less of its energy out. Each step, from nothing to the coarsest type and from there to the next finer one,
removes so much squared Frobenius error for so many bytes. The best steps are taken until the budget is used up. Of
parts that are orthogonal to each other, as singular directions are, no other choice of the same size leaves less error,
but for the last step, which may not fit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# So many steps that do not fit are passed over, while a budget is not used up but for this share.
PASSED_OVER, WORTHWHILE = 100, 0.0005


@dataclass(frozen=True)
class Parts:
    """Parts of one kind, which differ in their energies only.

    Attributes:
        energies: (…) squared Frobenius norms, times how many models they are in.
        kept: type → the share of the energy that is kept in it, mean over the parts.
        nbytes: type → bytes of one part.
        needed: whether each is stored whatever it removes, at least in the coarsest type.
    """

    energies: Array
    kept: Mapping[str, float]
    nbytes: Mapping[str, int]
    needed: bool = False

    @cached_property
    def ladder(self) -> list[str]:
        """The types that are worth it, from coarse to fine: each next one removes less per byte than the one before.
        With one that does not, a coarser one is left out."""
        found: list[str] = []
        for name in sorted(self.kept, key=lambda name: (self.nbytes[name], -self.kept[name])):
            if found and self.kept[name] <= self.kept[found[-1]]:
                continue
            while (
                found
                and not (self.needed and len(found) == 1)
                and self.rate(found, name) >= self.rate(found[:-1], found[-1])
            ):
                found.pop()
            found.append(name)
        return found

    def rate(self, below: Sequence[str], name: str) -> float:
        """Share of the energy that the step to a type removes, per byte."""
        kept, nbytes = (self.kept[below[-1]], self.nbytes[below[-1]]) if below else (0.0, 0)
        return (self.kept[name] - kept) / max(1, self.nbytes[name] - nbytes)


@dataclass(frozen=True)
class Steps:
    """All steps of all parts, the best ones first: after the first k of them, a part has the type of its last one.

    Attributes:
        names: of the kinds of parts.
        shapes: of their energies.
        owner: (steps,) which kind a step is of.
        part: which part of it, as a position in its flattened energies.
        rung: to which type of its ladder.
    """

    names: list[str]
    shapes: list[tuple[int, ...]]
    owner: NDArray[np.int64]
    part: NDArray[np.int64]
    rung: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.owner)

    def after(self, count: int) -> dict[str, NDArray[np.int64]]:
        """Kind → (…) number of types of the ladder that each part has climbed after so many steps; 0 is not stored."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        starts = np.cumsum([0, *sizes])
        # A part climbs one type after the other: as many as it has steps here.
        levels = np.bincount(starts[self.owner[:count]] + self.part[:count], minlength=starts[-1])
        ends = zip(self.names, self.shapes, starts, starts[1:], strict=False)
        return {name: levels[first:last].reshape(shape) for name, shape, first, last in ends}

    def without(self, step: int) -> "Steps":
        """All but this one, and what only comes after it."""
        left = (self.owner != self.owner[step]) | (self.part != self.part[step]) | (self.rung < self.rung[step])
        return replace(self, owner=self.owner[left], part=self.part[left], rung=self.rung[left])


def best_first(parts: Mapping[str, Parts]) -> Steps:
    """All steps in the order in which they are worth it; those that are needed come before all others."""
    rates: list[Array] = []
    columns: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    for i, one in enumerate(parts.values()):
        energies, ladder = one.energies.ravel(), one.ladder
        for rung, name in enumerate(ladder):
            rate = energies * one.rate(ladder[:rung], name)
            chosen = np.arange(len(energies)) if one.needed and not rung else np.flatnonzero(energies > 0)
            rates.append(np.full(len(chosen), np.inf) if one.needed and not rung else rate[chosen])
            columns.append((np.full(len(chosen), i), chosen, np.full(len(chosen), rung)))
    owner, part, rungs = (np.concatenate(one) if one else np.zeros(0, int) for one in zip(*columns, strict=True))
    # Of equal rates, coarse types come before fine ones, and parts in their order.
    order = np.lexsort((part, owner, rungs, -np.concatenate(rates)))
    shapes = [one.energies.shape for one in parts.values()]
    return Steps(list(parts), shapes, owner[order], part[order], rungs[order])


def within(steps: Steps, nbytes: Callable[[Steps, int], int], budget: int, least: int) -> tuple[Steps, int]:
    """The first steps that a budget holds, of at least `least`, which it does; one that is too large for what is left
    of it is passed over for the next ones.

    Args:
        steps: the best ones first.
        nbytes: of all that is stored after so many of these steps; grows with them.
        budget: in bytes.
        least: how many are taken at any rate.

    Returns:
        Steps without those passed over, and how many of them are taken.
    """
    count, left = least, budget
    for _ in range(PASSED_OVER):
        high = len(steps)
        while count < high:
            middle = (count + high + 1) // 2
            taken = nbytes(steps, middle)
            count, high, left = (middle, high, budget - taken) if taken <= budget else (count, middle - 1, left)
        if count == len(steps) or left < WORTHWHILE * budget:
            break
        steps = steps.without(count)
    return steps, count
