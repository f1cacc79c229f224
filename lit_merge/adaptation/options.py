"""The options of adaptation. A field that is added here is an option in Python, in the YAML file, in the plan of a fit
and in its checkpoints."""

import inspect
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from lit_merge.adaptation.correction import Correction
from lit_merge.adaptation.rank_masks import AdaRank
from lit_merge.adaptation.stages import TAUGHT_STAGES, TWO_STAGES, Stage, check_stages
from lit_merge.adaptation.stored_bank import BankDevice
from lit_merge.errors import MergeError, check_choice, check_finite
from lit_merge.objectives import Entropy, Objective

MicroBatch = Literal["all", "task"]
# They change time and memory, and no bit of the coefficients.
SAME_RESULT = ("gradient_checkpointing", "bank_device")
Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True)
class Adaptation:
    """What a fit learns, and how.

    Args:
        objective: what is minimised; entropy by default.
        stages: what is learnt, for how many steps, at which rate; one after the other. By default first one coefficient
            for the whole merge; then one for every singular direction, by the experts, where there are `teachers`, else
            one per task and weight.
        bounds: [lower, upper] for the coefficients; AdaMerging clamps to [0, 1]. None by default: CART's are above 1.
        ranks: learn which singular directions are used, too.
        correction: learn a correction of the origin, too, one for all tasks.
        sharpness: how far from the coefficients the worst gradient is looked for (SAM); 0 is off.
        microbatch: `all` runs one forward over the batches of all tasks; `task` runs the tasks of a step one after the
            other, with the activations of one in memory at a time.
        gradient_checkpointing: compute activations inside the network's blocks again in the backward, for less memory
            and more time; with `microbatch: task`.
        bank_device: `auto` keeps the bank on the GPU where it takes at most half of the free memory; `cpu` keeps it in
            pinned memory and streams it weight by weight.
        teachers: where neither objective nor stages are named, learn from the experts once entropy has found the
            scale. It takes experts at hand, a bank with low-rank deltas, and data that are neither online nor mixed,
            with 32 inputs of every task at least.
        compile: torch.compile of the network: minutes at first, less time a step.

    Raises:
        MergeError: an option out of its range; no stage; gradient checkpointing without `microbatch: task`.
    """

    objective: Objective | None = None
    stages: Sequence[Stage] | None = None
    bounds: tuple[float, float] | None = None
    ranks: AdaRank | None = None
    correction: Correction | None = None
    sharpness: float = 0.0
    microbatch: MicroBatch = "all"
    gradient_checkpointing: bool = False
    bank_device: BankDevice = "auto"
    teachers: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        check_finite(vars(self))
        for one in fields(self):
            check_choice(one.name, getattr(self, one.name), one.type)
        if self.sharpness < 0:
            raise MergeError(f"sharpness={self.sharpness}: expected a number from 0, off, up")
        if self.gradient_checkpointing and self.microbatch != "task":
            raise MergeError("gradient_checkpointing needs microbatch=task: its backward runs inside the network")
        if self.stages is not None:
            object.__setattr__(self, "stages", tuple(self.stages))
            check_stages(self.stages)

    def settled(self, taught: bool) -> "Adaptation":
        """These options, with entropy and stages where none are named. `taught`: experts can teach directions."""
        stages = TAUGHT_STAGES if taught and self.teachers and self.objective is None else TWO_STAGES
        return replace(self, objective=self.objective or Entropy(), stages=self.stages or stages)

    def describe(self) -> dict[str, Any]:
        """name → value, or class and options of an object, as JSON takes them."""
        found = {name: _plain(value) for name, value in vars(self).items()}
        return dict(json.loads(json.dumps(found, default=str)))

    def plan(self) -> dict[str, Any]:
        """What `describe` says of the options that change a bit of what a fit ends at."""
        return {name: value for name, value in self.describe().items() if name not in SAME_RESULT}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | int | float | bool | dict):
        return value
    options = vars(value).items()
    kinds = str | int | float | bool | list | tuple | dict
    plain = {name: _plain(one) for name, one in options if isinstance(one, kinds) or is_dataclass(one)}
    return {"class": type(value).__name__} | plain


def spelled_out(*classes: type) -> Callable[[Made], Made]:
    """Shows the arguments of these classes in the signature of a function that hands its `**options` on to them, for
    editors, help and the command line, which read signatures. A function without a docstring gets theirs, too."""

    def show(function: Made) -> Made:
        asked = inspect.signature(function)
        by_place = any(one.kind is one.VAR_POSITIONAL for one in asked.parameters.values())
        listed = {
            name: one for name, one in asked.parameters.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        }
        for name, one in (pair for made in classes for pair in inspect.signature(made).parameters.items()):
            listed.setdefault(name, one if by_place else one.replace(kind=one.KEYWORD_ONLY))
        function.__signature__ = asked.replace(parameters=sorted(listed.values(), key=lambda one: one.kind))  # type: ignore[attr-defined]
        if function.__doc__ is None:
            about = f"Takes the arguments of {' and '.join(one.__name__ for one in classes)}.\n\nArgs:"
            function.__doc__ = "\n".join([about, *itertools.chain(*map(_arguments, classes))])
        return function

    return show


def _arguments(of: type) -> list[str]:
    """The lines of a docstring that describe arguments."""
    _, _, found = (inspect.getdoc(of) or "").partition("\nArgs:\n")
    return list(itertools.takewhile(lambda line: line.startswith(" "), found.splitlines()))
