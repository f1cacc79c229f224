"""Stages of a fit: what is learnt when, and at which rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from lit_merge.adaptation.coefficients import Granularity
from lit_merge.errors import Finite, MergeError
from lit_merge.objectives import ExpertAgreement, Objective


@dataclass(frozen=True)
class Stage(Finite):
    """A part of the fit: what is learnt, for how many steps, at which rate of Adam.

    Args:
        granularity: tied (one coefficient for the whole merge), task, block, layer, or direction (one for every
            singular direction of a low-rank delta).
        steps: number of optimiser steps; the last stage goes on for as long as the trainer does.
        lr: Adam's learning rate of the coefficients.
        relative: count the steps of the coefficients in units of their mean at the beginning of the stage, so that one
            rate suits merges of small and of large coefficients.
        decay: `cosine` lets all rates of the stage fall to 0 by its end; `constant` keeps them.
        objective: what this stage minimises, where it is another one than the fit's.
    """

    granularity: Granularity = "layer"
    steps: int = 500
    lr: float = 1e-3
    relative: bool = False
    decay: Literal["constant", "cosine"] = "constant"
    objective: Objective | None = None


# The scale first: coefficients of different tasks compete and cannot travel far. docs/adaptation.md compares.
TWO_STAGES = (Stage("tied", 100, 0.05), Stage("layer", 200, 1e-3))
# And where experts teach, every direction: entropy says too little of thousands of coefficients.
TAUGHT_STAGES = (
    TWO_STAGES[0],
    Stage("direction", 200, 0.02, relative=True, decay="cosine", objective=ExpertAgreement()),
)


# Beyond these a coefficient is no number after a step, and a trainer counts no further.
LARGEST_RATE, MOST_STEPS = 1e6, 2**53


def check_stages(stages: Sequence[Stage]) -> None:
    """Raises MergeError where there is none, or one that is of no length or rate."""
    if not stages or any(not 1 <= stage.steps <= MOST_STEPS or not 0 < stage.lr <= LARGEST_RATE for stage in stages):
        raise MergeError(
            f"stages: expected at least one, each with steps from 1 to {MOST_STEPS} and lr above 0, at most "
            f"{LARGEST_RATE:g}"
        )


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """Which stage a step belongs to; the last one has no end.

    >>> [stage_at(TWO_STAGES, step) for step in (0, 99, 100, 999)]
    [0, 0, 1, 1]
    """
    ends = accumulate(stage.steps for stage in stages[:-1])
    return sum(end <= step for end in ends)


def rates_at(stages: Sequence[Stage], step: int, others: Sequence[float]) -> list[float]:
    """Learning rates at a step: of the coefficients, and of what else is learnt, by its rate.

    >>> rates_at(TWO_STAGES, 0, [1e-3]), rates_at(TWO_STAGES, 100, [1e-3])
    ([0.05, 0.0], [0.001, 0.001])
    """
    index = stage_at(stages, step)
    stage, begin = stages[index], sum(one.steps for one in stages[:index])
    # A merge that is too small wants every direction it can have: the rest waits until the scale is found.
    waits = stage.granularity == "tied" and index + 1 < len(stages)
    done = min(1.0, (step - begin) / stage.steps)
    share = (1 + math.cos(math.pi * done)) / 2 if stage.decay == "cosine" else 1.0
    return [stage.lr * share, *(0.0 if waits else rate * share for rate in others)]
