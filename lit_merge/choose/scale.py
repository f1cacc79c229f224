"""Choosing a merge's scale without labels: at the minimum of the mean entropy on unlabelled inputs."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lit_merge.bank.task_bank import TaskBank
from lit_merge.choose.sample import Probe, Reading
from lit_merge.data.class_names import MIXED
from lit_merge.errors import MergeError, MergeWarning, check_finite
from lit_merge.merge.scaling import at_scaling
from lit_merge.methods import MergeMethod

# Factor between neighbours while the minimum is being bracketed, how far it is looked for from the start, and how
# close the golden section comes to it. The valley is shallow: 5 % of the scale change nothing that can be measured.
STEP = 1.5
FARTHEST = 40.0
TOLERANCE = 1.05
# Where doubts begin: see docs/choosing.md.
FEW_TASKS = 4
FEW_INPUTS = 16
ONE_SIDED = 0.3
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Choice:
    """A scale, and the curve that it was chosen from.

    Attributes:
        scaling: the chosen one.
        curve: scale → mean entropy (nats), in order of the scales.
        inside: whether the minimum was bracketed; False where entropy still fell at the end of the range.
    """

    scaling: float
    curve: dict[float, float]
    inside: bool


def minimise(curve: Callable[[float], float], start: float) -> Choice:
    """The minimum of a curve with one valley, from `start` > 0: first by factors of 1.5 until it rises on both sides,
    then by golden section on log scale. About a dozen values.

    >>> choice = minimise(lambda x: (x - 3) ** 2, 1.0)
    >>> abs(choice.scaling - 3) < 0.1, len(choice.curve) < 15
    (True, True)
    """
    seen: dict[float, float] = {}

    def value(x: float) -> float:
        if x not in seen:
            seen[x] = curve(x)
        return seen[x]

    best, factor = start, STEP if value(start * STEP) < value(start) else 1 / STEP
    while value(best * factor) < value(best) and start / FARTHEST < best * factor < start * FARTHEST:
        best *= factor
    low, high = best / STEP, best * STEP
    inside = value(best) <= min(value(low), value(high))
    while inside and high / low > TOLERANCE**2:
        ratio = high / low
        left, right = high / ratio**GOLDEN, low * ratio**GOLDEN
        low, high = (low, right) if value(left) <= value(right) else (left, high)
    return Choice(min(seen, key=lambda x: seen[x]), dict(sorted(seen.items())), inside)


def choose_scaling(bank: TaskBank, method: MergeMethod, probe: Probe, start: float | None = None) -> Choice:
    """The scale of a method at which its merge is most confident on unlabelled inputs of all tasks.

    The mean entropy along the scale has one minimum, and it lies where the accuracy peaks: docs/choosing.md says where
    this was measured and where it fails.

    Args:
        bank: of `method`, at any coefficients; decomposed once, merged about a dozen times.
        method: whose scale is chosen.
        probe: the inputs.
        start: where the search starts; the method's default scale otherwise.

    Raises:
        MergeError: a method without a scale.
    """
    if method.scale is None or not bank.layers:
        raise MergeError(f"{type(method).__name__} has no scale to choose")
    check_finite({"start": start})
    if start is None:
        start = method.usual_scale
    readings: dict[float, Reading] = {}

    def curve(scaling: float) -> float:
        readings[scaling] = probe.read(at_scaling(bank, method, scaling).merge(dtype=torch.float32, naming="canonical"))
        return readings[scaling].mean_entropy

    choice = minimise(curve, start)
    message = doubts(probe, min(readings[choice.scaling].balance.values()))
    if not choice.inside:
        message.append(f"the entropy still falls at {choice.scaling:.3g}, the end of the range: no minimum to trust")
    for one in message:
        warnings.warn(f"scaling=entropy: {one}", MergeWarning, stacklevel=2)
    return choice


def doubts(probe: Probe, balance: float, minimum: bool = True) -> list[str]:
    """What speaks against trusting a choice without labels, in words.

    Args:
        probe: the inputs that were looked at.
        balance: of the chosen merge, the lowest of all tasks, see `Reading`.
        minimum: whether the minimum of the entropy was chosen.
    """
    found = []
    if minimum and len(probe.inputs) < FEW_TASKS and MIXED not in probe.inputs:
        found.append(
            f"with {len(probe.inputs)} tasks the minimum of the entropy lies above the best scale; trust it from eight"
        )
    if few := [task for task, inputs in probe.inputs.items() if len(inputs) < FEW_INPUTS]:
        found.append(f"fewer than {FEW_INPUTS} inputs of {', '.join(few)}: what they say is noisy")
    if balance < ONE_SIDED:
        found.append("nearly all inputs of a task go to one class: are they of one class?")
    return found
