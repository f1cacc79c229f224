"""The grid of a sweep: methods × ranks × scales, every bank built once from shared decompositions."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import torch

from lit_merge.bank.task_bank import TaskBank
from lit_merge.choose.sample import Probe
from lit_merge.choose.sweep.points import SELF_CONSISTENT, Key, Point
from lit_merge.errors import Finite, MergeError
from lit_merge.experts.decompositions import Decompositions
from lit_merge.experts.experts import Experts
from lit_merge.merge.build import build_bank
from lit_merge.merge.scaling import at_scaling
from lit_merge.methods import MergeMethod, Transform

RANK_RATIOS = (0.04, 0.08, 0.12, 0.16, 0.24, 0.32)
# Of a method's usual scale.
MULTIPLES = (1 / 3, 2 / 3, 1.0, 3 / 2, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Grid(Finite):
    """What a sweep walks.

    Args:
        methods: each is swept over the ranks, where it has a rank to choose, and over the scales, where it has one.
            Methods whose rank follows from the number of tasks (TSV-M, ESM) keep it.
        rank_ratios: share of min(m, n), for CART and its like; None takes .04 to .32.
        scalings: None takes 1/3 to 4 times every method's usual scale.

    Raises:
        MergeError: two methods of one class; no point at all; ranks or scales that none of the methods takes.
    """

    methods: tuple[MergeMethod, ...]
    rank_ratios: tuple[float, ...] | None = None
    scalings: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [type(method).__name__ for method in self.methods]
        for name in names:
            if names.count(name) > 1:
                raise MergeError(f"sweep: {name} is named twice: its rows would look alike")
        if not names or () in (self.rank_ratios, self.scalings):
            raise MergeError("sweep: expected at least one method, rank_ratio and scaling")
        for what, given, takes in (
            ("rank_ratios", self.rank_ratios, has_ranks),
            ("scalings", self.scalings, lambda method: method.scale is not None),
        ):
            if given is not None and not any(map(takes, self.methods)):
                raise MergeError(f"sweep: {what} has nothing to choose for {', '.join(names)}: leave it out")

    @property
    def ranks(self) -> tuple[float, ...]:
        """The shares that methods with ranks to choose are swept over."""
        return RANK_RATIOS if self.rank_ratios is None else self.rank_ratios

    def rows(self) -> Iterator[tuple[MergeMethod, tuple[float | None, ...]]]:
        """Every bank that is built, and the scales at which it is merged."""
        for method in self.methods:
            ranked = [replace(method, rank_ratio=ratio) for ratio in self.ranks] if has_ranks(method) else [method]  # type: ignore[call-arg]
            for one in ranked:
                usual = tuple(round(one.usual_scale * multiple, 4) for multiple in MULTIPLES)
                yield one, (None,) if one.scale is None else self.scalings or usual

    def keys(self) -> Iterator[Key]:
        """The key of every point that `walk` may answer."""
        for method, wanted in self.rows():
            yield from ((type(method).__name__, rank_ratio(method), f"{one}") for one in (*wanted, SELF_CONSISTENT))

    def __len__(self) -> int:
        return sum(len(wanted) for _, wanted in self.rows())


def has_ranks(method: MergeMethod) -> bool:
    """Whether a sweep chooses its rank, rather than the number of tasks or nobody."""
    return any(one.name == "rank_ratio" and one.default is not None for one in fields(method))


def rank_ratio(method: MergeMethod) -> float | None:
    return getattr(method, "rank_ratio", None)


def walk(
    grid: Grid,
    experts: Experts,
    probe: Probe,
    labelled: Probe | None = None,
    transform: Transform | None = None,
    decompositions: Decompositions | None = None,
    known: Mapping[Key, Point] | None = None,
) -> Iterator[Point]:
    """Reads every point of the grid that is not known yet, and the self-consistent scale of every bank.

    Args:
        grid: the points.
        experts: with their base, where a method or the self-consistent scale needs it.
        probe: with the experts' predictions, for entropy and agreement; for accuracy too where it has labels.
        labelled: other inputs for the accuracy.
        transform: in front of every method.
        decompositions: shared by all banks.
        known: points of an earlier sweep.
    """
    known = known or {}
    decompositions = decompositions or Decompositions()
    for method, wanted in grid.rows():
        name, ratio = type(method).__name__, rank_ratio(method)
        missing = [scale for scale in wanted if (name, ratio, f"{scale}") not in known]
        rule = method.scale is not None and experts.base is not None
        ask_rule = rule and (name, ratio, SELF_CONSISTENT) not in known
        if not missing and not ask_rule:
            continue
        bank, consistent = build(method, experts, transform, decompositions, ask_rule)
        for scale in missing:
            yield read(bank, method, scale, "grid", probe, labelled)
        if consistent is not None:
            yield read(bank, method, consistent, SELF_CONSISTENT, probe, labelled)


def build(
    method: MergeMethod, experts: Experts, transform: Transform | None, kept: Decompositions, rule: bool
) -> tuple[TaskBank, float | None]:
    """The bank, and the self-consistent scale where it is asked for and exists."""
    if rule:
        try:
            with warnings.catch_warnings():
                # What the rule finds is measured here; doubts are for those who would trust it unseen.
                warnings.filterwarnings("ignore", "scaling=self_consistent")
                bank = build_bank(
                    experts, method=method.at("self_consistent"), transform=transform, decompositions=kept
                )
            return bank, bank.method["chosen"]["scaling"]  # type: ignore[index]
        except MergeError:
            if method.scale == "self_consistent":
                raise
    plain = method if method.scale is None else method.at(1.0)
    return build_bank(experts, method=plain, transform=transform, decompositions=kept), None


def read(
    bank: TaskBank, method: MergeMethod, scale: float | None, rule: str, probe: Probe, labelled: Probe | None
) -> Point:
    """Merges and reads one point."""
    scaled = bank if scale is None else at_scaling(bank, method, scale)
    weights = scaled.merge(dtype=torch.float32, naming="canonical")
    seen = probe.read(weights)
    accuracy = (seen if labelled is None else labelled.read(weights)).mean_accuracy
    assert seen.mean_agreement is not None
    name = type(method).__name__
    balance = min(seen.balance.values())
    return Point(name, rank_ratio(method), scale, rule, accuracy, seen.mean_entropy, seen.mean_agreement, balance)
