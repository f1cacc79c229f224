"""What a merging method is, and the one driver that runs any of them over the weights of the experts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_merge.checkpoints import Source
from lit_merge.errors import MergeError
from lit_merge.experts import Experts, Weight
from lit_merge.matrices import Matrices, select_matrices
from lit_merge.progress import track
from lit_merge.task_bank import Delta, TaskBank


@dataclass(frozen=True)
class MergeMethod(ABC):
    """Hyper-parameters of a method, and how it turns one weight of all experts into origin and deltas."""

    needs_base: ClassVar[bool]

    def start(self) -> float:
        """The coefficient of a static merge, at which adaptation starts."""
        return 1.0

    def selected(self, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """Names of the weights that go to `matrix`; methods that decompose nothing select none."""
        matrices: Matrices | None = getattr(self, "matrices", None)
        return frozenset() if matrices is None else select_matrices(shapes, matrices)

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        """Origin (m, n) and delta (T or 1, m, n) of a selected 2-D weight."""
        return self.rest(weight)

    @abstractmethod
    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        """Origin (…) and delta (T or 1, …), None for no delta, of any other weight."""

    def check(self, experts: Experts) -> None:  # noqa: B027  most methods take any experts
        """Warns of, or refuses, experts that the method cannot do much with."""

    def describe(self) -> dict[str, object]:
        """Class and hyper-parameters, as a configuration names them."""
        return {"class_path": type(self).__name__, "init_args": asdict(self)}


def build_bank(
    experts: Mapping[str, Source] | Experts,
    base: Source | None = None,
    *,
    method: MergeMethod,
    dtype: torch.dtype | None = None,
) -> TaskBank:
    """Merges experts into a task bank, one weight at a time.

    Args:
        experts: task → path or state dict, in the order of the tasks.
        base: the pretrained checkpoint; optional where the method needs none (CART, weight averaging).
        method: what to do with every weight, for example `CART(rank_ratio=0.08)`.
        dtype: of the origin and the factors; None stores them in the experts' dtype. Decompositions are computed in
            float32 (float64 for float64 experts) whatever is chosen here; singular values stay in that precision.

    Raises:
        MergeError: experts that do not fit together, a weight that is not finite, a base that is missing.
    """
    if not isinstance(experts, Experts):
        experts = Experts(experts, base if method.needs_base else None)
    if method.needs_base and experts.base is None:
        raise MergeError(f"{type(method).__name__} needs the pretrained checkpoint: pass base=…")
    method.check(experts)
    selected = method.selected(experts.shapes)
    origins: dict[str, Tensor] = {}
    deltas: dict[str, Delta] = {}
    stream = experts.stream(with_base=method.needs_base)
    for weight in track(stream, f"merging with {type(method).__name__}", len(experts.shapes)):
        stored = dtype if dtype and weight.experts.is_floating_point() else experts.dtypes[weight.name]
        if weight.agrees:
            origins[weight.name] = weight.experts[0].to(stored)
            continue
        origin, delta = (method.matrix if weight.name in selected else method.rest)(weight)
        origins[weight.name] = origin.to(stored)
        if delta is not None:
            deltas[weight.name] = delta.to(stored)
    # λ = 0.3 in float32 would be off by 4e-8: too much for experts in float64.
    precision = torch.float64 if torch.float64 in experts.dtypes.values() else torch.float32
    rows = next((delta.shape[0] for delta in deltas.values()), len(experts.tasks))
    return TaskBank(
        tasks=experts.tasks,
        origin=origins,
        deltas=deltas,
        coefficients=torch.full((rows, len(deltas)), float(method.start()), dtype=precision),
        dtypes=dict(experts.dtypes),
        method=method.describe(),
    )
