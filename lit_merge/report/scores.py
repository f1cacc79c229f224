"""What labelled inputs say of weights: accuracy and entropy of one task, and the mean over tasks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class TaskScore:
    """What one task's images say: accuracy in [0, 1], mean entropy in nats, number of images."""

    accuracy: float
    entropy: float
    images: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def mean_accuracy(scores: Mapping[str, TaskScore]) -> float:
    """The mean over tasks, whatever their sizes, as the literature reports it."""
    return sum(score.accuracy for score in scores.values()) / len(scores)
