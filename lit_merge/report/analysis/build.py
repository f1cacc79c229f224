"""The analysis of experts: one weight of all experts at a time, and the result."""

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.low_rank import LowRank, rank_of
from lit_merge.console import track_weights
from lit_merge.errors import MergeError, check_choice
from lit_merge.experts.experts import Experts
from lit_merge.experts.inner_products import check_squares
from lit_merge.experts.matrices import Matrices, select_matrices
from lit_merge.experts.stream import WeightStream
from lit_merge.experts.weight import Weight
from lit_merge.report.analysis.curves import (
    Normalise,
    cosines,
    interference,
    kept_energy,
    rank_keeping,
    reconstruction_error,
)

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_WEIGHT = re.compile(r"[._]weight$")


def kinds_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Kind → names, in the order of the names: what follows a block's number is the kind of its weights.

    >>> kinds_of(["blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight", "proj"])
    {'attn.qkv': ['blocks.0.attn.qkv.weight', 'blocks.1.attn.qkv.weight'], 'proj': ['proj']}
    """
    masked: dict[str, list[str]] = defaultdict(list)
    for name in names:
        masked[_WEIGHT.sub("", _NUMBER.sub("*", name))].append(name)
    short = {mask: mask.rpartition("*.")[2] for mask in masked}
    # Two towers of one model may name their weights alike: there the whole name stays.
    alike = list(short.values())
    return {(short[mask] if alike.count(short[mask]) == 1 else mask): found for mask, found in masked.items()}


Anchor = Literal["centred", "pretrained", "bank"]
"""What task vectors are differences to: the mean of the experts, the pretrained checkpoint, or the origin of a bank."""

RATIOS = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class MatrixCurves:
    """One matrix under one anchor; entry k − 1 of a curve is about rank k."""

    S: Float[Tensor, "T r"]
    interference: Float[Tensor, " r"]

    @cached_property
    def error(self) -> Float[Tensor, " r"]:
        return reconstruction_error(self.S)

    @cached_property
    def kept(self) -> Float[Tensor, " r"]:
        return kept_energy(self.S)

    @property
    def energy(self) -> float:
        """Σ_t ‖Δ_t‖²."""
        return self.S.square().sum().item()


@dataclass(frozen=True, eq=False)
class Analysis:
    """Curves of every matrix and cosines between whole task vectors, under one anchor or two.

    Attributes:
        tasks: names of the T experts.
        ratios: k / min(m, n) at which files and figures show the curves; k = max(1, ⌊ratio·min(m, n)⌋).
        normalise: what singular values are divided by in the interference.
        shapes: (m, n) of every matrix that was analysed.
        curves: anchor → name → curves: `centred`, and `pretrained` where the base is known; or `bank` alone.
        grams: anchor → inner products of the task vectors over all these matrices, float64.
    """

    tasks: tuple[str, ...]
    ratios: tuple[float, ...]
    normalise: Normalise
    shapes: dict[str, tuple[int, int]]
    curves: dict[Anchor, dict[str, MatrixCurves]]
    grams: dict[Anchor, Float[Tensor, "T T"]]

    @property
    def anchors(self) -> tuple[Anchor, ...]:
        return tuple(self.curves)

    @cached_property
    def kinds(self) -> dict[str, list[str]]:
        """Kind of layer → names of its matrices."""
        return kinds_of(self.shapes)

    @cached_property
    def unchanged(self) -> list[str]:
        """Matrices in which no expert differs from another, nor from the base; averages leave them out."""
        return [name for name in self.shapes if not any(self.curves[anchor][name].energy for anchor in self.anchors)]

    def rank(self, name: str, ratio: float) -> int:
        return rank_of(ratio, *self.shapes[name])

    def moved(self, anchor: Anchor, names: Iterable[str] | None = None) -> list[str]:
        """The matrices, or those of `names`, whose task vectors are not all zero."""
        return [name for name in (self.shapes if names is None else names) if self.curves[anchor][name].energy]

    def interferences(self, anchor: Anchor, ratio: float, names: Iterable[str] | None = None) -> list[float]:
        """I at this ratio, for every matrix that moved."""
        curves = self.curves[anchor]
        return [curves[n].interference[self.rank(n, ratio) - 1].item() for n in self.moved(anchor, names)]

    def losses(self, anchor: Anchor, ratio: float, names: Iterable[str] | None = None) -> list[float]:
        """R over the energy at this ratio, for every matrix that moved."""
        curves = self.curves[anchor]
        return [1 - curves[n].kept[self.rank(n, ratio) - 1].item() for n in self.moved(anchor, names)]

    def interference(self, anchor: Anchor, ratio: float, names: Iterable[str] | None = None) -> float:
        """Mean of I over the matrices; 0 where none moved."""
        return _mean(self.interferences(anchor, ratio, names))

    def loss(self, anchor: Anchor, ratio: float, names: Iterable[str] | None = None) -> float:
        """ΣR / Σ energy over the matrices together; 0 where none moved."""
        moved, curves = self.moved(anchor, names), self.curves[anchor]
        lost = sum(curves[name].error[self.rank(name, ratio) - 1].item() for name in moved)
        return lost / self.energy(anchor, moved) if moved else 0.0

    def energy(self, anchor: Anchor, names: Iterable[str] | None = None) -> float:
        """Σ_t ‖Δ_t‖² over the matrices together."""
        return sum((self.curves[anchor][name].energy for name in self.moved(anchor, names)), 0.0)

    def rank_ratios_keeping(self, anchor: Anchor, share: float = 0.9) -> list[float]:
        """k / min(m, n) of the smallest rank that keeps this share of the energy, for every matrix that moved."""
        curves = self.curves[anchor]
        return [rank_keeping(curves[n].S, share) / min(self.shapes[n]) for n in self.moved(anchor)]

    def cosines(self, anchor: Anchor) -> Float[Tensor, "T T"]:
        return cosines(self.grams[anchor])

    def mean_absolute_cosine(self, anchor: Anchor) -> float | None:
        """Over pairs of tasks; None where there is no pair."""
        pairs = torch.triu_indices(len(self.tasks), len(self.tasks), 1)
        return self.cosines(anchor)[pairs[0], pairs[1]].abs().mean().item() if len(self.tasks) > 1 else None

    @property
    def size(self) -> str:
        """Numbers of experts and matrices, in words."""
        experts, matrices = len(self.tasks), len(self.shapes)
        return f"{experts} expert{'' if experts == 1 else 's'}, {matrices} {'matrix' if matrices == 1 else 'matrices'}"

    @property
    def notes(self) -> list[str]:
        """What a reader must know of these experts."""
        notes = []
        if "bank" in self.curves:
            return ["of the directions that the bank holds; `analyze` looks at whole experts"]
        if "pretrained" not in self.curves:
            notes.append("no pretrained checkpoint given: centred only")
        if len(self.tasks) == 1:
            notes.append("one expert: no pairs, so interference is 0, and its centred task vector is 0")
        if len(self.tasks) == 2:
            notes.append("two experts: their centred task vectors are each other's negatives")
        elif len(self.tasks) > 2 and not self.moved("centred"):
            notes.append("the experts are identical: centred task vectors are 0")
        if self.unchanged and (len(self.tasks) > 1 or "pretrained" in self.curves):
            notes.append(f"{len(self.unchanged)} of {len(self.shapes)} matrices differ nowhere: left out of averages")
        return notes


def analyze(
    experts: Experts,
    ratios: Sequence[float] | None = None,
    matrices: Matrices = "block",
    normalise: Normalise = "whole",
) -> Analysis:
    """Interference, reconstruction error and cosines of any experts (arXiv 2412.12153), one weight at a time.

    Centred task vectors θ_t − θ̄, and θ_t − θ₀ where the experts have a base. One decomposition per matrix and anchor,
    in float32 (float64 for float64 experts), serves all ranks.

    Args:
        experts: opened checkpoints.
        ratios: k / min(m, n) to show, in (0, 1]; about 20 between .01 and 1 by default.
        matrices: see `select_matrices`.
        normalise: singular values over the sum of the `whole` spectrum, or of the `top` k.

    Raises:
        MergeError: a ratio outside (0, 1], a pattern that matches nothing, a weight that is not finite, or whose
            squares are beyond float64.
    """
    check_choice("normalise", normalise, Normalise)
    grid = sorted({float(ratio) for ratio in (RATIOS if ratios is None else ratios)})
    if not grid or not all(0 < ratio <= 1 for ratio in grid):
        raise MergeError(f"ratios={grid}: expected shares of min(m, n) in (0, 1], for example [0.08, 0.16]")
    selected = select_matrices(experts.shapes, matrices)
    # Of the other weights nothing is wanted: they are not read.
    experts = copy.copy(experts)
    experts.shapes = {name: shape for name, shape in experts.shapes.items() if name in selected}
    anchors: tuple[Anchor, ...] = ("centred",) if experts.base is None else ("centred", "pretrained")
    curves: dict[Anchor, dict[str, MatrixCurves]] = {anchor: {} for anchor in anchors}
    size = len(experts.tasks)
    grams = {anchor: torch.zeros(size, size, dtype=torch.float64) for anchor in anchors}
    for weight in track_weights(WeightStream(experts, with_base=True), experts.sizes, "analysing"):
        for anchor in anchors:
            vectors = _vectors(weight, anchor)
            factors = LowRank.from_dense(vectors, min(vectors.shape[1:]))
            curves[anchor][weight.name] = MatrixCurves(
                factors.S.double(), interference(factors.S, factors.V, normalise)
            )
            flat = vectors.flatten(1).double()
            grams[anchor] += (gram := flat @ flat.T)
            check_squares(gram, vectors.flatten(1), weight.name)
    shapes = {name: (shape[0], shape[1]) for name, shape in experts.shapes.items()}
    return Analysis(experts.tasks, tuple(grid), normalise, shapes, curves, grams)


def _vectors(weight: Weight, anchor: Anchor) -> Float[Tensor, "T m n"]:
    if anchor == "pretrained":
        return weight.task_vectors
    if bool((weight.experts == weight.experts[0]).all()):
        # The mean of equal numbers can be off by a last bit, and rounding has a spectrum too.
        return torch.zeros_like(weight.experts)
    return weight.centred


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
