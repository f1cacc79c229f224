"""What a merging method is. What a transform of task vectors is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar, Literal

from torch import Tensor

from lit_merge.bank.low_rank import Delta, check_rank_ratio
from lit_merge.errors import Finite, MergeError
from lit_merge.experts.experts import Experts
from lit_merge.experts.matrices import Matrices, select_matrices
from lit_merge.experts.stream import Change, WeightStream
from lit_merge.experts.weight import Weight

Rule = Literal["entropy", "self_consistent"]
Scaling = float | Rule


@dataclass(frozen=True)
class MergeMethod(Finite, ABC):
    """Hyper-parameters of a method, and how it turns one weight of all experts into origin and deltas.

    `build_bank` calls `check`, then `prepare`, then for every weight `matrix` or `rest` of what `prepare` answered,
    and at the end its `finish`. Fields of some names have a meaning for all: `scaling`, `matrices` (see
    `select_matrices`) and `rank_ratio`, a share in (0, 1] or None.
    """

    needs_base: ClassVar[bool] = True
    """Whether the pretrained checkpoint must be given: `weight.base` and `weight.task_vectors` are then there."""
    centred: ClassVar[bool] = False
    """Whether every vector that all experts share cancels: then transforms that remove one bring nothing."""
    elementwise: ClassVar[bool] = True
    """Whether `rest` treats every entry by itself, so that large weights may come in blocks of rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = getattr(self, "rank_ratio", None)
        if ratio is not None:
            check_rank_ratio(ratio)

    @property
    def scale(self) -> Scaling | None:
        """The field `scaling`; None for methods without one."""
        return getattr(self, "scaling", None)

    @property
    def usual_scale(self) -> float:
        """What `scaling` is unless it is given."""
        default = next((one.default for one in fields(self) if one.name == "scaling"), 1.0)
        return float(default) if isinstance(default, int | float) else 1.0

    @property
    def needs_all(self) -> bool:
        """Whether all deltas are in memory at once: for methods that weigh layers against each other (ESM), and for
        rules that find the scale."""
        return isinstance(self.scale, str) or type(self).finish is not MergeMethod.finish

    def at(self, scaling: Scaling) -> "MergeMethod":
        """This method at another scale."""
        return replace(self, scaling=scaling)  # type: ignore[call-arg]

    def start(self, name: str) -> float:
        """The coefficient of this weight in a static merge, where adaptation starts; 1 while a rule is to find it."""
        scale = self.scale
        return 1.0 if scale is None or isinstance(scale, str) else float(scale)

    def selected(self, shapes: Mapping[str, tuple[int, ...]], tasks: int = 1) -> frozenset[str]:
        """Names of the weights that go to `matrix`; methods that decompose nothing select none.

        Args:
            shapes: of all weights.
            tasks: T; matrices that are too small to have directions for each of them are left to `rest`.
        """
        matrices: Matrices | None = getattr(self, "matrices", None)
        chosen = frozenset() if matrices is None else select_matrices(shapes, matrices)
        return frozenset(name for name in chosen if self.has_room(shapes[name], tasks))

    def has_room(self, shape: tuple[int, ...], tasks: int) -> bool:
        """Whether a matrix of this shape has directions for so many tasks."""
        return True

    def check(self, experts: Experts) -> None:
        """Warns of, or refuses, experts that the method cannot do much with."""

    def prepare(self, weights: WeightStream) -> "MergeMethod":
        """What then runs over the weights: this method, or one that knows statistics of all, from a pass of its own."""
        return self

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        """Origin (m, n) and delta (T or 1, m, n) of a selected 2-D weight."""
        return self.rest(weight)

    @abstractmethod
    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        """Origin (…) and delta (T or 1, …), None for no delta, of any other weight: often one of `mean_vector`,
        `shares` and `whole_vectors`."""

    def finish(self, deltas: dict[str, Delta]) -> dict[str, Delta]:
        """The deltas once all are known: for methods that weigh layers against each other."""
        return deltas

    def describe(self) -> dict[str, object]:
        """Class and hyper-parameters, as a configuration names them."""
        return {"class_path": type(self).__name__, "init_args": asdict(self)}


def mean_vector(method: MergeMethod, weight: Weight) -> tuple[Tensor, Delta | None]:
    """θ₀ and the mean of the task vectors, one delta for all tasks."""
    return weight.base, weight.task_vectors.mean(0, keepdim=True)


def shares(method: MergeMethod, weight: Weight) -> tuple[Tensor, Delta | None]:
    """θ₀ and τ_t/T, whose sum is the mean of the task vectors."""
    return weight.base, weight.task_vectors / len(weight.experts)


def whole_vectors(method: MergeMethod, weight: Weight) -> tuple[Tensor, Delta | None]:
    """θ₀ and every τ_t; as factors where experts are known as such."""
    return weight.base, weight.low_rank or weight.task_vectors


def per_task(option: str, value: float | Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """One number of an option for every task, in their order.

    Raises:
        MergeError: a task without one, a number for no task.
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(tasks, float(value))
    for task in tasks:
        if task not in value:
            raise MergeError(f"{option} has no number for the task {task}: give one for every task, or one for all")
    for task in value:
        if task not in tasks:
            raise MergeError(f"{option} names {task!r}, which is no task of this merge: {', '.join(tasks)}")
    return {task: float(value[task]) for task in tasks}


@dataclass(frozen=True)
class Transform(Finite, ABC):
    """Hyper-parameters of a step in front of any method, which then sees the changed experts."""

    @abstractmethod
    def fit(self, experts: Experts) -> Change:
        """Looks at all experts, in passes of its own, and answers what changes one weight of them.

        Where the answer has a `report`, a dict of numbers, `build_bank` puts it on the bank's record of the transform.

        Raises:
            MergeError: experts that it cannot work on.
        """

    def describe(self) -> dict[str, object]:
        """Class and hyper-parameters, as a configuration names them."""
        return {"class_path": type(self).__name__, "init_args": asdict(self)}
