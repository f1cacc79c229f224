"""What methods share that look at the second moments of every weight's inputs."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from lit_merge.errors import MergeError, MergeWarning
from lit_merge.experts.experts import Experts
from lit_merge.experts.moments import Moments, check_moments, load_moments, second_moment
from lit_merge.experts.stream import WeightStream
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod


@dataclass(frozen=True)
class MomentsMethod(MergeMethod):
    """A method that looks at what flows into the weights.

    Args:
        samples: unlabelled images of each task to collect moments from, where none are given. `build_bank` has no
            images: see `collect_moments`.
        moments: {task: {weight: E[x xᵀ] of its inputs, (n, n)}}, or a folder that `save_moments` wrote.

    Raises:
        MergeError: no samples; moments that do not fit the experts.
    """

    without_moments: ClassVar[str]
    """What becomes of matrices without moments, as the warning says it."""
    samples: int = 32
    # Moments, or None. Not by that name: the command line's help would offer subclasses of Tensor.
    moments: Mapping[str, Mapping[str, Any]] | str | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise MergeError(f"samples={self.samples}: expected at least 1")

    def wants_moments(self, name: str) -> bool:
        """Whether moments of this matrix would be used."""
        return True

    def prepare(self, weights: WeightStream) -> MergeMethod:
        """This method with its moments opened, in the order of the tasks; says which matrices have none."""
        experts = weights.experts
        run = replace(self, moments=open_moments(self.moments, experts))
        selected = self.selected(experts.shapes, len(experts.tasks))
        wanted = [name for name in experts.shapes if name in selected and self.wants_moments(name)]
        lacking = [name for name in wanted if not run.knows(name)]
        if lacking:
            named = ", ".join(lacking[:3]) + (", …" if len(lacking) > 3 else "")
            warnings.warn(
                f"{type(self).__name__}: {len(lacking)} of {len(wanted)} matrices have no second moments of their "
                f"inputs ({named}): {self.without_moments}",
                MergeWarning,
                stacklevel=3,
            )
        return run

    def knows(self, name: str) -> bool:
        """Whether there are moments of this matrix for every task. Of what `prepare` answered only."""
        assert isinstance(self.moments, Mapping)
        return all(name in own for own in self.moments.values())

    def second_moments(self, weight: Weight) -> Iterator[Tensor | None]:
        """C (n, n) of every task in turn, float64; None where none is known. Of what `prepare` answered only."""
        assert isinstance(self.moments, Mapping)
        found = (second_moment(self.moments, task, weight.name) for task in self.moments)
        return (None if one is None else one.to(weight.experts.device) for one in found)

    def describe(self) -> dict[str, object]:
        # Not the matrices themselves: a configuration names a folder of them, or none.
        folder = None if isinstance(self.moments, Mapping) else self.moments
        init_args = asdict(replace(self, moments=None)) | {"moments": folder and str(folder)}
        about: dict[str, object] = {"class_path": type(self).__name__, "init_args": init_args}
        return about | {"moments": "given"} if isinstance(self.moments, Mapping) else about


def open_moments(moments: Mapping[str, Mapping[str, Any]] | str | None, experts: Experts) -> Moments:
    """Moments of every task, in the order of the tasks; none of any weight where None is given."""
    if moments is None:
        return {task: {} for task in experts.tasks}
    if not isinstance(moments, Mapping):
        return load_moments(moments, experts)
    check_moments(moments, experts)
    return {task: moments[task] for task in experts.tasks}
