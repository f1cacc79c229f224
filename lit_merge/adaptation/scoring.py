"""Modules that are scored on labelled data: accuracy and entropy per task."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from lit_merge.data import TaskData
from lit_merge.errors import MergeError
from lit_merge.networks import Network
from lit_merge.objectives import entropy
from lit_merge.report.scores import TaskScore


class TaskMetrics(Metric):
    """Running sums of every task's hits, entropies and images: one tensor, so that processes sum it in one exchange
    although each of them may have seen other tasks."""

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


class ScoredModule(LightningModule):
    """A module that Lightning's `validate`, `test` and `predict` run over batches of one task each.

    Args:
        network: encoder and heads.
        tasks: all that may come.

    Attributes:
        scores: task → what was found at the last pass.
    """

    def __init__(self, network: Network, tasks: Sequence[str]) -> None:
        super().__init__()
        self.network, self.metrics = network, TaskMetrics(tasks)
        self.label_rows: dict[str, Tensor] = {}
        self.scores: dict[str, TaskScore] = {}

    def setup(self, stage: str) -> None:
        # Before the first loader is made.
        if isinstance(data := getattr(self.trainer, "datamodule", None), TaskData):
            data.suit(self.network)

    def weights_for(self, task: str) -> Mapping[str, Tensor]:
        """The weights that a task's inputs are run with."""
        raise NotImplementedError

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """(B, C) of one labelled batch."""
        return self.network.evaluate(self.weights_for(batch["task"]), batch)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        logits, rows = self.logits(batch), self.network.rows(batch, self.label_rows)
        self.metrics.update(batch["task"], logits, rows)
        self.note(batch, logits, rows)

    def note(self, batch: Mapping[str, Any], logits: Tensor, rows: Tensor) -> None:
        """Sees every labelled batch, its logits (B, C) and the rows (B,) that are right."""

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_start(self) -> None:
        self.label_rows = self.check_classes("validation")

    def on_test_start(self) -> None:
        self.label_rows = self.check_classes("test")

    def on_validation_epoch_end(self) -> None:
        self.finish_scores("validation")

    def on_test_epoch_end(self) -> None:
        self.finish_scores("test")

    def finish_scores(self, split: str) -> None:
        """At the end of a pass over the split."""
        self.scores = self.metrics.scores()

    def on_predict_start(self) -> None:
        self.check_classes("adaptation")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The five most probable classes of every input, fewer where there are fewer."""
        return self.most_probable(batch, self.logits(batch))

    @staticmethod
    def most_probable(batch: Mapping[str, Any], logits: Tensor) -> dict[str, Any]:
        """What `predict_step` answers of a batch, from its logits (B, C)."""
        p, classes = logits.softmax(-1).topk(min(5, logits.shape[-1]))
        return {"task": batch["task"], "indices": batch["indices"], "classes": classes, "probabilities": p}

    def check_classes(self, split: str) -> dict[str, Tensor]:
        """Task → the head's row of every label of the trainer's data, where both know what classes are called.

        Raises:
            MergeError: another number of classes than a head has rows, or other classes.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TaskData):
            return {}
        if split != "adaptation":
            data.check_classes(split, self.network.heads.classes)
        return data.label_rows(split, self.network.heads.rows_of)


class Evaluator(ScoredModule):
    """Tests weights that may depend on the task: a merge, the pretrained checkpoint, or every task's own expert.

    Args:
        network: encoder and heads.
        tasks: all tasks of the data.
        weights: task → weights by name. Called once per run of equal tasks, so that experts are read one by one.
        label: what the progress bar calls them.
        note: sees every batch, see `ScoredModule.note`.
    """

    def __init__(
        self,
        network: Network,
        tasks: Sequence[str],
        weights: Callable[[str], Mapping[str, Tensor]],
        label: str = "testing",
        note: Callable[[Mapping[str, Any], Tensor, Tensor], None] | None = None,
    ) -> None:
        super().__init__(network, tasks)
        if note is not None:
            self.note = note  # type: ignore[assignment, method-assign]
        self.weights, self.label = weights, label
        self._loaded: tuple[str, dict[str, Tensor]] | None = None

    def weights_for(self, task: str) -> Mapping[str, Tensor]:
        if self._loaded is None or self._loaded[0] != task:
            self._loaded = task, {name: self._placed(weight) for name, weight in self.weights(task).items()}
        return self._loaded[1]

    def _placed(self, weight: Tensor) -> Tensor:
        """Where the network computes, at least as precise as its heads."""
        wide = torch.promote_types(weight.dtype, next(self.network.heads.parameters()).dtype)
        return weight.to(self.device, wide if weight.is_floating_point() else None)
