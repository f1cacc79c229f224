"""A method at work on the weights of its experts: all at once, some of them, or blocks of rows of large ones."""

import functools
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge import __version__
from lit_merge.bank.low_rank import Delta, check_precision, combine
from lit_merge.bank.task_bank import TaskBank
from lit_merge.console import track_bytes
from lit_merge.errors import MergeWarning, check_choice
from lit_merge.experts.decompositions import Decompositions
from lit_merge.experts.experts import Experts, Piece
from lit_merge.experts.stream import WeightStream
from lit_merge.experts.weight import Weight
from lit_merge.merge.checks import check_merge
from lit_merge.merge.identical_experts import IdenticalExperts
from lit_merge.merge.scaling import at_scaling, self_consistent_scaling, start_coefficients
from lit_merge.methods import Transform
from lit_merge.methods.base import MergeMethod

Svd = Literal["auto", "exact"]
CPU = torch.device("cpu")
# What reading and adding up one entry costs, in multiply-adds of a decomposition.
ELEMENT = 300


@dataclass(frozen=True, eq=False)
class Part:
    """What a method makes of one weight, or of a block of rows of a large one.

    Attributes:
        name: of the weight.
        origin: its rows of the origin.
        delta: the same rows of every delta; None where experts do not differ, or the method has none.
        row: the first of them; None for a whole weight.
        last: whether the weight ends with them.
    """

    name: str
    origin: Tensor
    delta: Delta | None
    row: int | None = None
    last: bool = True


@dataclass(frozen=True)
class Job:
    """A method, about to run over the weights of its experts.

    Attributes:
        experts: what is merged.
        weights: one at a time, as the transform leaves them.
        decompositions: that are kept.
        method: as it was given.
        run: the same, with statistics of all weights where it takes any.
        transform: what is done to the task vectors first.
        svd: how matrices are decomposed.
        report: what the transform has to say.
        device: where matrices are decomposed.
    """

    experts: Experts
    weights: WeightStream
    decompositions: Decompositions | None
    method: MergeMethod
    run: MergeMethod
    transform: Transform | None
    svd: Svd
    report: dict[str, Any]
    device: torch.device = CPU

    @classmethod
    def open(
        cls,
        experts: Experts,
        method: MergeMethod,
        transform: Transform | None,
        decompositions: Decompositions | None,
        svd: Svd,
        device: torch.device = CPU,
    ) -> "Job":
        """Checks that all is there, and makes the passes over the weights that come before the one that merges."""
        check_choice("svd", svd, Svd)
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
        weights = WeightStream(experts, with_base, change)
        tasks = len(experts.tasks)
        if small := sorted(method.selected(experts.shapes) - method.selected(experts.shapes, tasks)):
            message = f"{type(method).__name__}: {small[0]}{f' and {len(small) - 1} others' if small[1:] else ''}"
            message += f": fewer directions than the {tasks} tasks, so merged as what is no matrix"
            warnings.warn(message, MergeWarning, stacklevel=4)
        for task in () if with_base else experts.of_base_file():
            # Where the base is read, values tell; see `parts`.
            warnings.warn(f"the expert {task} is the base: is a path wrong?", MergeWarning, stacklevel=4)
        run, report = method.prepare(weights), getattr(change, "report", {})
        return cls(experts, weights, decompositions, method, run, transform, svd, report, device)

    @functools.cached_property
    def selected(self) -> frozenset[str]:
        """Names of the weights that are decomposed."""
        return self.method.selected(self.experts.shapes, len(self.experts.tasks))

    def costs(self) -> dict[str, float]:
        """What the work on every weight is in proportion to: m·n·min(m, n) for a decomposition, and the bytes."""
        selected, shapes = self.selected, self.experts.shapes
        return {n: float(math.prod(s) * (ELEMENT + (min(s) if n in selected else 0))) for n, s in shapes.items()}

    def parts(
        self,
        dtype: torch.dtype | None,
        names: Sequence[str] | None = None,
        in_blocks: Collection[str] = (),
        factors: bool = True,
    ) -> Iterator[Part]:
        """Origin, and delta where experts differ, of every weight in turn, as they are stored. Says which experts are
        the same file twice, or the base, as far as can be known.

        Args:
            dtype: of origin and factors; None for the experts'.
            names: of the weights to go through; None for all.
            in_blocks: names of weights that may come as several parts where they are large, one block of rows after
                the other. What is computed is the same to the bit.
            factors: whether matrices are wanted as a bank holds them, or only their sum.

        Raises:
            MergeError: a dtype of whole numbers.
        """
        check_precision(dtype)
        pieces = self._pieces(self.experts.shapes if names is None else names, in_blocks)
        label = " and ".join(type(one).__name__ for one in (self.transform, self.method) if one is not None)
        progress = track_bytes(self.experts.sizes_of(pieces), f"merging with {label}")
        identical, agree = IdenticalExperts(self.experts, self.weights.with_base), False
        stream = self.weights.stream(pieces)
        for (name, rows), _ in zip(pieces, progress, strict=True):
            weight = next(stream)
            identical.compare(weight)
            agree = self._agree(weight, rows, agree)
            if agree:
                made = [self._part(weight, rows, weight.experts[0], None, dtype)]
            else:
                weight = self._ready(weight, factors)
                origin, delta = (self.run.matrix if name in self.selected else self.run.rest)(weight)
                made = [self._part(weight, rows, origin, delta, dtype)]
                del origin, delta
            del weight  # not while its part is worked on, or the next weight is read
            yield made.pop()
        if pieces:
            identical.warn(self.experts.shapes.keys() - {name for name, _ in pieces})

    def _pieces(self, names: Iterable[str], in_blocks: Collection[str]) -> list[Piece]:
        """These weights, or their blocks of rows where that changes nothing."""
        split = set(in_blocks) - self.selected if self.method.elementwise else set()
        return [piece for name in names for piece in (self.weights.blocks(name) if name in split else [(name, None)])]

    def _agree(self, weight: Weight, rows: slice | None, before: bool) -> bool:
        """Whether there is nothing to merge in the whole weight, of which these are some rows; `before` says it of the
        rows before them. Not of each block by itself: a mean of equal numbers need not be that number."""
        if rows is None:
            return weight.agrees
        blocks = self.weights.blocks(weight.name)
        return before if rows.start else all(block.agrees for block in self.weights.stream(blocks))

    def _ready(self, weight: Weight, factors: bool) -> Weight:
        """The weight, with what its matrices are decomposed by, where they are decomposed."""
        if weight.name in self.selected and self.decompositions is None:  # those that are kept are on the CPU
            weight = weight.to(self.device)
        return replace(weight, decompositions=self.decompositions, exact=self.svd == "exact", factors=factors)

    def _part(
        self, weight: Weight, rows: slice | None, origin: Tensor, delta: Delta | None, dtype: torch.dtype | None
    ) -> Part:
        """Origin and delta as they are stored."""
        name, origin, delta = weight.name, origin.cpu(), None if delta is None else delta.cpu()
        kept = stored = dtype if dtype and origin.is_floating_point() else self.experts.dtypes[name]
        if dtype is None and weight.vectors is not None:
            # Adapters hold more digits than the base that they are for, and their mean more than they.
            kept = self.experts.precision(name)
            stored = stored if torch.equal(origin.to(stored).to(origin.dtype), origin) else origin.dtype
        row, last = (None, True) if rows is None else (rows.start, rows.stop == self.experts.shapes[name][0])
        return Part(name, origin.to(stored), None if delta is None else delta.to(kept), row, last)

    def merged(self, part: Part, dtype: torch.dtype | None = None) -> Tensor:
        """The rows of a merged weight, at the coefficients at which a merge starts; None for the experts' dtype."""
        column = None if part.delta is None else self.start((part.name,), part.delta.shape[0])[:, 0]
        return combine(part.origin, part.delta, column, dtype or self.experts.dtypes[part.name])

    def start(self, names: tuple[str, ...], rows: int) -> Float[Tensor, "rows L"]:
        """The coefficients at which a merge starts."""
        return start_coefficients(self.method, names, rows, self._precision)

    @functools.cached_property
    def _precision(self) -> torch.dtype:
        """Of coefficients: λ = 0.3 in float32 would be off by 4e-8, too much for experts in float64."""
        return torch.float64 if torch.float64 in self.experts.dtypes.values() else torch.float32

    def build(self, dtype: torch.dtype | None = None) -> TaskBank:
        """The bank, in memory; `dtype` is that of `parts`."""
        origins: dict[str, Tensor] = {}
        deltas: dict[str, Delta] = {}
        for part in self.parts(dtype):
            origins[part.name] = part.origin
            if part.delta is not None:
                deltas[part.name] = part.delta
        return self.bank(origins, self.run.finish(deltas))

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
            recipe={"lit_merge": __version__, **self.experts.recipe},
        )
        if self.method.scale != "self_consistent":
            return bank
        return at_scaling(bank, self.method, self_consistent_scaling(bank, self.weights, self.method))
