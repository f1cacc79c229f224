"""OnlineScores: how right the merge was about every batch before it adapted on it."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.data import TaskData
from lit_merge.data.streams import Answers
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.networks import Heads
from lit_merge.report.scores import TaskScore


class OnlineScores(Callback):
    """Keeps what is predicted of every batch of an online stream before its update, and scores it when the fit ends.

    Labels are read when the stream is over. `scores` holds accuracies per task then; none where the data knows no
    labels. Checkpoints hold the predictions so far.

    Raises:
        MergeError: data that is no online stream: images would be predicted again after they were adapted on.
    """

    def __init__(self) -> None:
        self.scores: dict[str, TaskScore] = {}
        self._predicted: dict[str, list[Tensor]] = {}

    @property
    def predictions(self) -> dict[str, Tensor]:
        """Stream → predicted classes (n,) of its first n images, in order, on the CPU."""
        return {task: torch.cat([one.cpu() for one in parts]) for task, parts in self._predicted.items()}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._predicted, self.scores = {}, {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, MergedModel):
            raise MergeError(f"OnlineScores works on a MergedModel, not on {type(pl_module).__name__}")
        if not getattr(_data(trainer), "online", False):
            raise MergeError("OnlineScores scores data that passes once: set --data.protocol online, or leave it out")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step and not self._predicted:
            raise MergeError("this checkpoint holds no predictions of the stream so far: start the fit afresh")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The stream comes in order: an image's position is the number of those before it.
        for task, classes in outputs["predictions"].items():
            self._predicted.setdefault(task, []).append(classes)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A fit that goes on after its last step does not train.
        assert isinstance(pl_module, MergedModel)
        data, heads = _data(trainer), pl_module.network.heads
        answers = data.answers()
        rows = data.label_rows("answers", heads.rows_of) if answers else {}
        self.scores = online_scores(self.predictions, answers, heads, rows)
        seen, whole = sum(s.images for s in self.scores.values()), sum(len(known.tasks) for known in answers.values())
        if seen < whole:
            warnings.warn(
                f"the fit ended before the stream: online accuracies are of {seen} of its {whole} images",
                MergeWarning,
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Tensor]:
        return self.predictions

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._predicted = {task: [classes] for task, classes in state_dict.items()}


def _data(trainer: Trainer) -> TaskData:
    return trainer.datamodule  # type: ignore[attr-defined]


def online_scores(
    predictions: Mapping[str, Int[Tensor, " n"]],
    answers: Mapping[str, Answers],
    heads: Heads,
    label_rows: Mapping[str, Int[Tensor, " C"]],
) -> dict[str, TaskScore]:
    """Accuracy per task of what was predicted of streams while they passed, from their beginning.

    Args:
        predictions: stream → predicted classes of its first n images, in order.
        answers: stream → what is known of its images; streams without any are left out.
        heads: those that predicted, a stream being called as its head.
        label_rows: task → the head's row of every label; labels of other tasks are rows themselves.
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
