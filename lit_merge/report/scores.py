"""Accuracy and entropy per task, of any weights."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from lit_merge.data import TaskData
from lit_merge.data.streams import Answers
from lit_merge.errors import MergeError
from lit_merge.networks import Heads, Network
from lit_merge.networks.network import NO_NAMES
from lit_merge.objectives import entropy


@dataclass(frozen=True)
class TaskScore:
    """What one task's images say: accuracy in [0, 1], mean entropy in nats, number of images."""

    accuracy: float
    entropy: float
    images: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class TaskMetrics(Metric):
    """Running sums of every task's hits, entropies and images: one tensor, so that processes sum it in one exchange
    whichever tasks each of them has seen."""

    sums: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.add_state("sums", torch.zeros(len(self.tasks), 3), dist_reduce_fx="sum")

    def update(self, task: str, logits: Tensor, labels: Tensor) -> None:
        """Adds logits (B, C) of inputs of one task, and the classes (B,) that are right."""
        hits = (logits.argmax(-1) == labels).sum()
        self.sums[self.tasks.index(task)] += torch.stack([hits, entropy(logits).sum(), hits.new_tensor(len(labels))])

    def compute(self) -> Float[Tensor, "T 3"]:
        return self.sums

    def scores(self) -> dict[str, TaskScore]:
        """Scores of the tasks that were seen, by any process; starts afresh.

        Raises:
            MergeError: outputs that were not finite.
        """
        with warnings.catch_warnings():
            # A process that got no batch still takes part in the exchange.
            warnings.filterwarnings("ignore", ".*``compute`` method of metric.*")
            rows = self.compute().tolist()
        self.reset()
        for task, (_, entropies, _) in zip(self.tasks, rows, strict=True):
            if not math.isfinite(entropies):
                raise MergeError(
                    f"task {task}: the network answers NaN or infinity: its weights, or the precision that it runs in, "
                    "leave the range of numbers",
                    task=task,
                )
        return {
            task: TaskScore(hits / images, entropies / images, int(images))
            for task, (hits, entropies, images) in zip(self.tasks, rows, strict=True)
            if images
        }


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
        self.label_rows: dict[str, Tensor] = {}
        self._loaded: tuple[str, dict[str, Tensor]] | None = None

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        task = batch["task"]
        if self._loaded is None or self._loaded[0] != task:
            self._loaded = task, {name: self._placed(weight) for name, weight in self.weights(task).items()}
        logits = self.network.evaluate(self._loaded[1], batch)
        self.metrics.update(task, logits, self.network.rows(batch, self.label_rows))

    def _placed(self, weight: Tensor) -> Tensor:
        """Where the network computes, at least as precise as its heads."""
        wide = torch.promote_types(weight.dtype, next(self.network.heads.parameters()).dtype)
        return weight.to(self.device, wide if weight.is_floating_point() else None)

    def on_test_start(self) -> None:
        self.label_rows = check_classes(self, self.network, "test")

    def on_test_epoch_end(self) -> None:
        self.scores = self.metrics.scores()


def check_classes(module: LightningModule, network: Network, split: str) -> dict[str, Tensor]:
    """Task → the head's row of every label of the trainer's data, where both know what classes are called.

    Raises:
        MergeError: another number of classes than a head has rows, or other classes.
    """
    data = getattr(module.trainer, "datamodule", None)
    if not isinstance(data, TaskData):
        return {}
    if split != "adaptation":
        data.check_classes(split, network.heads.classes)
    return data.label_rows(split, network.heads.rows_of)


def online_scores(
    predictions: Mapping[str, Int[Tensor, " n"]],
    answers: Mapping[str, Answers],
    heads: Heads,
    label_rows: Mapping[str, Int[Tensor, " C"]] = NO_NAMES,
) -> dict[str, TaskScore]:
    """Accuracy per task of what was predicted of streams while they passed, from their beginning.

    Args:
        predictions: stream → predicted classes of its first n images, in order.
        answers: stream → what is known of its images; streams without any are left out.
        heads: those that predicted, a stream being called as its head.
        label_rows: task → the head's row of every label; labels are rows themselves by default.
    """
    hits: dict[str, list[bool]] = {}
    rows = {task: found.tolist() for task, found in label_rows.items()}
    for stream, known in answers.items():
        first = {task: heads.first_row(stream, task) for task in dict.fromkeys(known.tasks)}
        found = predictions[stream].tolist() if stream in predictions else []
        for task, label, predicted in zip(known.tasks, known.classes.tolist(), found, strict=False):
            order = rows.get(task, ())
            row = order[label] if label < len(order) else label
            hits.setdefault(task, []).append(predicted == first[task] + row)
    # No entropy: it is the predictions that were kept.
    return {task: TaskScore(sum(right) / len(right), math.nan, len(right)) for task, right in hits.items()}


def mean_accuracy(scores: Mapping[str, TaskScore]) -> float:
    """The mean over tasks, whatever their sizes, as the literature reports it."""
    return sum(score.accuracy for score in scores.values()) / len(scores)
