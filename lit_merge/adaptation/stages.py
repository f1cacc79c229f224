"""Stages of a fit: what is learnt when, and at which rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lit_merge.adaptation.coefficients import Granularity
from lit_merge.adaptation.rank_masks import AdaRank
from lit_merge.errors import Finite, MergeError


@dataclass(frozen=True)
class Stage(Finite):
    """A part of the fit: what is learnt, for how many steps, at which rate of Adam.

    Args:
        granularity: tied (one coefficient for the whole merge), task, block or layer.
        steps: number of optimiser steps; the last stage goes on for as long as the trainer does.
        lr: Adam's learning rate.
    """

    granularity: Granularity = "layer"
    steps: int = 500
    lr: float = 1e-3


# The scale first: coefficients of different tasks compete and cannot travel far. docs/adaptation.md compares.
TWO_STAGES = (Stage("tied", 100, 0.05), Stage("layer", 200, 1e-3))


def check_stages(stages: Sequence[Stage]) -> None:
    """Raises MergeError where there is none, or one that is of no length or rate."""
    if not stages or any(stage.steps < 1 or stage.lr <= 0 for stage in stages):
        raise MergeError("stages: expected at least one, each with steps ≥ 1 and lr > 0")


def stage_at(stages: Sequence[Stage], step: int) -> int:
    """Which stage a step belongs to; the last one has no end.

    >>> [stage_at(TWO_STAGES, step) for step in (0, 99, 100, 999)]
    [0, 0, 1, 1]
    """
    ends = accumulate(stage.steps for stage in stages[:-1])
    return sum(end <= step for end in ends)


def learning_rates(stages: Sequence[Stage], index: int, ranks: AdaRank | None) -> list[float]:
    """Of the coefficients in a stage, and of the masks where there are any."""
    if ranks is None:
        return [stages[index].lr]
    # A merge that is too small wants every direction it can have: ranks wait until the scale is found.
    waits = stages[index].granularity == "tied" and index + 1 < len(stages)
    return [stages[index].lr, 0.0 if waits else ranks.lr]
