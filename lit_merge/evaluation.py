"""Accuracy and entropy per task, of any weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_merge.networks import Network
from lit_merge.objectives import entropy


@dataclass(frozen=True)
class TaskScore:
    """What one task's images say: accuracy in [0, 1], mean entropy in nats, number of images."""

    accuracy: float
    entropy: float
    images: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class TaskMetrics(nn.Module):
    """Running accuracy and entropy of every task; sums over processes by itself."""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.hits: Sequence[MeanMetric] = nn.ModuleList(MeanMetric() for _ in tasks)  # type: ignore[assignment]
        self.entropies: Sequence[MeanMetric] = nn.ModuleList(MeanMetric() for _ in tasks)  # type: ignore[assignment]

    def update(self, task: str, logits: Tensor, labels: Tensor) -> None:
        """Adds logits (B, C) and labels (B,) of one task."""
        i = self.tasks.index(task)
        self.hits[i].update((logits.argmax(-1) == labels).float())
        self.entropies[i].update(entropy(logits))

    def compute(self) -> dict[str, TaskScore]:
        """Scores of the tasks that were seen; starts afresh."""
        scores = {}
        for task, hits, entropies in zip(self.tasks, self.hits, self.entropies, strict=True):
            if hits.update_called:
                accuracy, images = hits.compute().item(), int(hits.weight.item())
                scores[task] = TaskScore(accuracy, entropies.compute().item(), images)
            hits.reset()
            entropies.reset()
        return scores


class Evaluator(LightningModule):
    """Tests weights that depend on the task: a merge, the pretrained checkpoint, or every task's own expert.

    Args:
        network: encoder and heads.
        tasks: all tasks of the data.
        weights: task → weights by name. Called once per run of equal tasks, so that experts are read one by one.
        label: what the progress bar calls them.

    After `trainer.test(evaluator, …)`, `scores` holds the result.
    """

    def __init__(
        self,
        network: Network,
        tasks: Sequence[str],
        weights: Callable[[str], Mapping[str, Tensor]],
        label: str = "testing",
    ) -> None:
        super().__init__()
        self.network = network
        self.label = label
        self.metrics = TaskMetrics(tasks)
        self.weights = weights
        self.scores: dict[str, TaskScore] = {}
        self._loaded: tuple[str, dict[str, Tensor]] | None = None

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        task = batch["task"]
        if self._loaded is None or self._loaded[0] != task:
            self._loaded = task, {name: w.to(self.device) for name, w in self.weights(task).items()}
        logits = self.network(self._loaded[1], {task: batch["images"]})
        self.metrics.update(task, logits[task], batch["labels"])

    def on_test_epoch_end(self) -> None:
        self.scores = self.metrics.compute()


def mean_accuracy(scores: Mapping[str, TaskScore]) -> float:
    """The mean over tasks, whatever their sizes, as the literature reports it."""
    return sum(score.accuracy for score in scores.values()) / len(scores)
