"""What a sweep found at one method, rank and scale, and which of its points is best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lit_merge.errors import MergeError

Select = Literal["accuracy", "agreement", "entropy", "self_consistent"]
Inputs = Literal["validation", "unlabelled"]
SELF_CONSISTENT = "self_consistent"
# What a choice looks at. The self-consistent rule finds scales only: its banks are compared by agreement.
CRITERION = {"accuracy": "accuracy", "agreement": "agreement", "entropy": "entropy", SELF_CONSISTENT: "agreement"}
Key = tuple[str, float | None, str]


@dataclass(frozen=True)
class Point:
    """One merge of a sweep.

    Attributes:
        method: class of the method.
        rank_ratio: None for methods without one, or at their own.
        scaling: None for methods without one.
        rule: `grid`, or `self_consistent` for the scale that this rule found for the method and rank.
        accuracy: None where the inputs have no labels.
        entropy: mean entropy of the predictions, in nats.
        agreement: share of inputs on which the merge predicts what the task's expert does.
        balance: the lowest of all tasks, see `Reading`.
    """

    method: str
    rank_ratio: float | None
    scaling: float | None
    rule: str
    accuracy: float | None
    entropy: float
    agreement: float
    balance: float

    @property
    def key(self) -> Key:
        return self.method, self.rank_ratio, self.rule if self.rule == SELF_CONSISTENT else f"{self.scaling}"


def at_edge(points: Sequence[Point], chosen: Point) -> bool:
    """Whether the chosen scale is the smallest or the largest of several on the grid: the best may lie beyond it."""
    bank = (chosen.method, chosen.rank_ratio)
    scales = [p.scaling for p in points if (p.method, p.rank_ratio) == bank and p.rule != SELF_CONSISTENT and p.scaling]
    return chosen.rule != SELF_CONSISTENT and len(scales) > 1 and chosen.scaling in (min(scales), max(scales))


def choose(points: Sequence[Point], select: Select) -> Point:
    """The best point: by labels (`accuracy`), or without.

    `agreement` with the experts orders everything. `entropy` and `self_consistent` choose the scale of every method and
    rank; between those agreement decides, since entropy favours ranks that are over-confident (docs/choosing.md).

    Raises:
        MergeError: nothing to choose from.
    """
    candidates = [point for point in points if (point.rule == SELF_CONSISTENT) == (select == SELF_CONSISTENT)]
    if select == "accuracy":
        candidates = [point for point in candidates if point.accuracy is not None]
    # Scales at which a forward overflows.
    candidates = [point for point in candidates if math.isfinite(point.entropy)]
    if points and not any(math.isfinite(point.entropy) for point in points):
        raise MergeError(f"select={select}: every merge answers NaN or infinity: look at the experts, lower --scalings")
    if not candidates:
        what = (
            "there are no labelled validation inputs"
            if select == "accuracy"
            else "no merge of this grid has a self-consistent scale; agreement chooses without labels too"
        )
        raise MergeError(f"select={select}: {what}")
    if select == "entropy":
        banks = {(point.method, point.rank_ratio) for point in candidates}
        candidates = [
            min((point for point in candidates if (point.method, point.rank_ratio) == bank), key=lambda p: p.entropy)
            for bank in sorted(banks, key=str)
        ]
    if select == "accuracy":
        return max(candidates, key=lambda point: (point.accuracy or 0.0, -point.entropy))
    return max(candidates, key=lambda point: (point.agreement, -point.entropy))
