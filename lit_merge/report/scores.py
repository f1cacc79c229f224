"""What labelled inputs say of weights: accuracy and entropy of one task, and the mean over tasks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from lit_merge.console import html_table


@dataclass(frozen=True)
class TaskScore:
    """What one task's images say: accuracy in [0, 1], mean entropy in nats, number of images."""

    accuracy: float
    entropy: float
    images: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Scores(dict[str, TaskScore]):
    """Task → score, which prints as a table."""

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """Of every task, and of the mean: accuracy in %, entropy in nats, number of images."""
        found = [(task, f"{100 * s.accuracy:.1f}", f"{s.entropy:.3f}", f"{s.images}") for task, s in self.items()]
        if not self:
            return found
        entropy = sum(score.entropy for score in self.values()) / len(self)
        total = sum(score.images for score in self.values())
        return [*found, ("mean", f"{100 * mean_accuracy(self):.1f}", f"{entropy:.3f}", f"{total}")]

    def __repr__(self) -> str:
        width = max((len(task) for task, *_ in self.rows), default=4)
        lines = [f"{task:{width}}  {a:>5} %  {e} nats  {n} images" for task, a, e, n in self.rows]
        return "\n".join(["accuracy and entropy per task", *lines])

    def _repr_html_(self) -> str:
        """For notebooks."""
        headings = ("task", "accuracy, %", "entropy, nats", "images")
        return html_table("accuracy and entropy per task", headings, self.rows)


def mean_accuracy(scores: Mapping[str, TaskScore]) -> float:
    """The mean over tasks, whatever their sizes, as the literature reports it."""
    return sum(score.accuracy for score in scores.values()) / len(scores)
