"""The one driver that runs any method over the weights of the experts."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.checkpoints import Source
from lit_merge.decompositions import Decompositions
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.experts import Experts, WeightStream
from lit_merge.linalg import exact_decompositions
from lit_merge.methods.base import MergeMethod
from lit_merge.methods.scaling import at_scaling, self_consistent_scaling, start_coefficients
from lit_merge.progress import track_weights
from lit_merge.task_bank import Delta, TaskBank, combine
from lit_merge.transforms import Transform

Svd = Literal["auto", "exact"]


def build_bank(
    experts: Mapping[str, Source] | Experts,
    base: Source | None = None,
    *,
    method: MergeMethod,
    transform: Transform | None = None,
    dtype: torch.dtype | None = None,
    decompositions: Decompositions | None = None,
    exclude: Sequence[str] = (),
    svd: Svd = "auto",
) -> TaskBank:
    """Merges experts into a task bank, one weight at a time.

    Args:
        experts: task → path or state dict, in the order of the tasks.
        base: the pretrained checkpoint; optional where the method needs none (CART, weight averaging).
        method: what to do with every weight, for example `CART(rank_ratio=0.08)`. Of the rules for its scale, only
            `self_consistent` can be followed here; `entropy` looks at data (`choose_scaling`).
        transform: what to do with the task vectors first, for example `AWD()`.
        dtype: of the origin and the factors; None stores them in the experts' dtype. Decompositions are computed in
            float32 (float64 for float64 experts) whatever is chosen here; singular values stay in that precision.
        decompositions: to share with other banks of the same experts and transform.
        svd: `auto` decomposes large float32 matrices only as far as is asked for, which changes merged weights by less
            than a thousandth; `exact` decomposes all as a whole.
        exclude: shell patterns of weights that are not merged, as `classifier.*`; of experts that are not open yet.

    Raises:
        MergeError: experts that do not fit together, a weight that is not finite, a base that is missing.
    """
    if not isinstance(experts, Experts):
        # With the base also where the method needs none: LoRA experts do.
        experts = Experts(experts, base, exclude)
    job = Job.open(experts, method, transform, decompositions, svd)
    origins: dict[str, Tensor] = {}
    deltas: dict[str, Delta] = {}
    for name, origin, delta in job.parts(dtype):
        origins[name] = origin
        if delta is not None:
            deltas[name] = delta
    return job.bank(origins, job.run.finish(deltas))


def merge_stream(
    experts: Experts,
    method: MergeMethod,
    transform: Transform | None = None,
    decompositions: Decompositions | None = None,
    svd: Svd = "auto",
) -> Iterator[tuple[str, Tensor]]:
    """Canonical name and merged weight, one after the other: what `build_bank(…).merge(naming="canonical")` holds, in
    the memory of one weight of all experts.

    Methods that weigh layers against each other (ESM), and rules for the scale, need all deltas at once: they are in
    memory as in a bank.

    Args: as of `build_bank`; what is excluded is told when experts are opened.

    Raises:
        MergeError: as `build_bank`.
    """
    if method.scale == "self_consistent" or type(method).finish is not MergeMethod.finish:
        bank = build_bank(experts, method=method, transform=transform, decompositions=decompositions, svd=svd)
        yield from ((name, bank.weight(name)) for name in bank.origin)
        return
    job = Job.open(experts, method, transform, decompositions, svd)
    for name, origin, delta in job.parts(None, factors=False):
        column = None if delta is None else job.start((name,), delta.shape[0])[:, 0]
        yield name, combine(origin, delta, column, job.experts.dtypes[name])


def check_merge(experts: Experts, method: MergeMethod, transform: Transform | None) -> bool:
    """Whether the base's values are needed, from headers alone.

    Raises:
        MergeError: there is no base and it is needed; experts that the method cannot take.
    """
    transform = None if method.centred else transform
    needed = method.needs_base or transform is not None or method.scale == "self_consistent"
    if needed and experts.base is None:
        needy = method if method.needs_base else transform
        what = "scaling=self_consistent" if needy is None else type(needy).__name__
        raise MergeError(f"{what} needs the pretrained checkpoint: pass base=…")
    method.check(experts)
    return needed


@dataclass(frozen=True)
class Job:
    """A method, about to run over the weights of its experts.

    Attributes:
        experts: what is merged.
        weights: one at a time, as the transform leaves them.
        method: as it was given.
        run: the same, with statistics of all weights where it takes any.
        transform: what is done to the task vectors first.
        svd: how matrices are decomposed.
        report: what the transform has to say.
    """

    experts: Experts
    weights: WeightStream
    method: MergeMethod
    run: MergeMethod
    transform: Transform | None
    svd: Svd
    report: dict[str, Any]

    @classmethod
    def open(
        cls,
        experts: Experts,
        method: MergeMethod,
        transform: Transform | None,
        decompositions: Decompositions | None,
        svd: Svd,
    ) -> "Job":
        """Checks that all is there, and makes the passes over the weights that come before the one that merges."""
        if transform is not None and method.centred:
            name, other = type(method).__name__, type(transform).__name__
            warnings.warn(
                f"{other} changes nothing under {name}: centring removes every shared vector already; it is left out",
                MergeWarning,
                stacklevel=4,
            )
            transform = None
        with_base = check_merge(experts, method, transform)
        change = None if transform is None else transform.fit(experts)
        weights = WeightStream(experts, with_base, change, decompositions)
        return cls(experts, weights, method, method.prepare(weights), transform, svd, getattr(change, "report", {}))

    def parts(self, dtype: torch.dtype | None, factors: bool = True) -> Iterator[tuple[str, Tensor, Delta | None]]:
        """Name, origin, and delta where experts differ, of every weight in turn, as they are stored. Says which experts
        are the same file twice, as far as can be told.

        Args:
            dtype: of the parts; None stores them in the experts' dtype.
            factors: whether matrices are wanted as a bank holds them, or only their sum.
        """
        experts, name = self.experts, type(self.method).__name__
        label = name if self.transform is None else f"{type(self.transform).__name__} and {name}"
        selected = self.method.selected(experts.shapes)
        alike = set(combinations(range(len(experts.tasks)), 2))
        for weight in track_weights(self.weights, experts.sizes, f"merging with {label}"):
            alike = {(i, j) for i, j in alike if torch.equal(weight.experts[i], weight.experts[j])}
            stored = dtype if dtype and weight.experts.is_floating_point() else experts.dtypes[weight.name]
            if weight.agrees:
                yield weight.name, weight.experts[0].to(stored), None
                continue
            chosen = weight.name in selected
            with exact_decompositions(self.svd == "exact"):
                if factors:
                    origin, delta = (self.run.matrix if chosen else self.run.rest)(weight)
                else:
                    origin, delta = self.run.product(weight, chosen)
            delta = None if delta is None else delta.to(stored)
            name, weight = weight.name, None  # type: ignore[assignment]  # not while the next one is read
            yield name, origin.to(stored), delta
        for i, j in sorted(alike):
            told = f"the experts {experts.tasks[i]} and {experts.tasks[j]} are identical: is a path wrong?"
            warnings.warn(told, MergeWarning, stacklevel=4)

    def start(self, names: tuple[str, ...], rows: int) -> Float[Tensor, "rows L"]:
        """The coefficients at which a merge starts."""
        # λ = 0.3 in float32 would be off by 4e-8: too much for experts in float64.
        precision = torch.float64 if torch.float64 in self.experts.dtypes.values() else torch.float32
        return start_coefficients(self.method, names, rows, precision)

    def bank(self, origins: dict[str, Tensor], deltas: dict[str, Delta]) -> TaskBank:
        """All parts together, at the scale that the method names or a rule finds in the weights."""
        rows = next((delta.shape[0] for delta in deltas.values()), len(self.experts.tasks))
        about = self.method.describe()
        if self.transform is not None:
            about["transform"] = self.transform.describe() | self.report
        bank = TaskBank(
            tasks=self.experts.tasks,
            origin=origins,
            deltas=deltas,
            coefficients=self.start(tuple(deltas), rows),
            dtypes=dict(self.experts.dtypes),
            method=about,
            naming=self.experts.naming,
        )
        if self.method.scale != "self_consistent":
            return bank
        return at_scaling(bank, self.method, self_consistent_scaling(bank, self.weights, self.method))
