"""Rules that choose scale and rank: by labels, or by what the merge says of unlabelled inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lit_merge.choose.sample import balance, share
from lit_merge.choose.sweep import Point, choose
from lit_merge.choose.sweep.points import SELF_CONSISTENT
from lit_merge.objectives import entropy
from text_suite.records import Logits, Record

Criterion = Callable[[Float[Tensor, "N C"], Float[Tensor, "N C"]], float]
"""Logits of the merge and of the task's expert on the same texts → what is to be as small as possible."""


def mean_entropy(merged: Float[Tensor, "N C"], expert: Float[Tensor, "N C"]) -> float:
    """Entropy of the merge's predictions."""
    return entropy(merged).mean().item()


def disagreement(merged: Float[Tensor, "N C"], expert: Float[Tensor, "N C"]) -> float:
    """Share of texts on which the merge predicts another class than the expert."""
    return 1 - share(merged, expert.argmax(-1))


def divergence(merged: Float[Tensor, "N C"], expert: Float[Tensor, "N C"]) -> float:
    """KL(expert ‖ merge)."""
    return F.kl_div(merged.log_softmax(-1), expert.log_softmax(-1), reduction="batchmean", log_target=True).item()


def reverse_divergence(merged: Float[Tensor, "N C"], expert: Float[Tensor, "N C"]) -> float:
    """KL(merge ‖ expert)."""
    return divergence(expert, merged)


def hard_loss(merged: Float[Tensor, "N C"], expert: Float[Tensor, "N C"]) -> float:
    """Cross-entropy of the merge against the classes that the expert predicts."""
    return F.cross_entropy(merged, expert.argmax(-1)).item()


def soft_disagreement(merged: Float[Tensor, "N C"], expert: Float[Tensor, "N C"]) -> float:
    """1 − probability that two drawn predictions, the merge's and the expert's, are the same."""
    return 1 - (merged.softmax(-1) * expert.softmax(-1)).sum(-1).mean().item()


def unsure(merged: Float[Tensor, "N C"], expert: Float[Tensor, "N C"]) -> float:
    """1 − the merge's probability of the class that the expert predicts."""
    return 1 - merged.softmax(-1).gather(1, expert.argmax(-1, keepdim=True)).mean().item()


def entropy_gap(merged: Float[Tensor, "N C"], expert: Float[Tensor, "N C"]) -> float:
    """|H − H of the expert|, of the means."""
    return abs(mean_entropy(merged, expert) - mean_entropy(expert, expert))


def information(merged: Float[Tensor, "N C"], expert: Float[Tensor, "N C"]) -> float:
    """−(entropy of the mean prediction − mean entropy): what predictions say of texts, no expert needed."""
    return mean_entropy(merged, expert) - balance(merged) * torch.tensor(float(merged.shape[1])).log().item()


CRITERIA: dict[str, Criterion] = {
    "entropy": mean_entropy,
    "disagreement": disagreement,
    "KL(expert, merge)": divergence,
    "KL(merge, expert)": reverse_divergence,
    "loss on the expert's classes": hard_loss,
    "soft disagreement": soft_disagreement,
    "1 − p(expert's class)": unsure,
    "entropy gap": entropy_gap,
    "−information": information,
}


@dataclass(frozen=True)
class Study:
    """All merges of one method, and what the experts say of the pool.

    Attributes:
        records: of one method.
        experts: task → logits (N, C) of the task's expert on the pool.
        chosen: task → which texts of the pool are looked at.
    """

    records: Sequence[Record]
    experts: Logits
    chosen: Mapping[str, Int[Tensor, " n"]]
    known: dict[tuple[object, str], float] = field(default_factory=dict, repr=False)

    def value(self, record: Record, criterion: str) -> float:
        """Mean over the tasks, computed once."""
        key = record.point.key, criterion
        if key not in self.known:
            pairs = [(record.pool[task][i], self.experts[task][i]) for task, i in self.chosen.items()]
            self.known[key] = mean(CRITERIA[criterion](merged, expert) for merged, expert in pairs)
        return self.known[key]

    def points(self) -> list[Point]:
        """As a sweep over these texts would have read them."""
        return [
            replace(one.point, entropy=self.value(one, "entropy"), agreement=1 - self.value(one, "disagreement"))
            for one in self.records
        ]

    def by_two(self, scale: str, rank: str, consistent: bool = False) -> Point:
        """The scale of every rank by one criterion, or by the self-consistent rule, then the rank by another."""
        candidates = [one for one in self.records if (one.point.rule == SELF_CONSISTENT) == consistent]
        best: dict[float | None, Record] = {}
        for one in candidates:
            ratio = one.point.rank_ratio
            if ratio not in best or self.value(one, scale) < self.value(best[ratio], scale):
                best[ratio] = one
        return min(best.values(), key=lambda one: (self.value(one, rank), self.value(one, "entropy"))).point

    def choices(self) -> dict[str, Point]:
        """Rule → what it takes. The first four are lit_merge's own."""
        points = self.points()
        rules = {
            "labels": choose(points, "accuracy"),
            "agreement": choose(points, "agreement"),
            "entropy, rank by agreement": choose(points, "entropy"),
            "entropy alone": self.by_two("entropy", "entropy"),
        }
        if any(point.rule == SELF_CONSISTENT for point in points):
            rules["self-consistent, rank by agreement"] = choose(points, "self_consistent")
            rules["self-consistent, rank by entropy"] = self.by_two("entropy", "entropy", consistent=True)
        for name in CRITERIA:
            if name not in ("entropy", "disagreement"):
                rules[name] = self.by_two(name, name)
        return rules
