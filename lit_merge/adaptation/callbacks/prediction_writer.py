"""PredictionWriter: predictions as a file, written while they are made."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_merge.adaptation.routing.routed_model import RoutedModel
from lit_merge.adaptation.scoring import ScoredModule
from lit_merge.checkpoints import check_output
from lit_merge.data import TaskData
from lit_merge.data.class_names import MIXED, numbered
from lit_merge.errors import MergeError
from lit_merge.networks import Heads
from lit_merge.report.prediction_files import (
    PREDICTIONS,
    ROUTED,
    TOP,
    PredictionFile,
    Row,
    prediction_format,
    writing,
)


class PredictionWriter(Callback):
    """Writes a row per image in `predict`: task, position, file where the data are files, and the most probable classes
    with their probabilities; of a RoutedModel also the task that the input was taken for. Classes are named where data
    or heads name them; else they are the numbers of the head's rows.

    The file appears when the run is whole. With `return_predictions=False` nothing is kept in memory.

    Args:
        path: .csv, .parquet or .jsonl.
        overwrite: replace what stands there.

    Raises:
        MergeError: another suffix; before the first image: a path that exists or cannot be written, more than one
            process, or names of classes that are more or fewer than the head's rows.
    """

    def __init__(self, path: str, overwrite: bool = False) -> None:
        self.path, self.overwrite = path, overwrite
        prediction_format(path)
        self._names: dict[str, Sequence[str]] = {}
        self._stack = ExitStack()
        self._file: PredictionFile | None = None

    def check(self, trainer: Trainer) -> None:
        """Raises MergeError where this trainer cannot write the file."""
        if trainer.world_size > 1:
            # Each process has seen a part of the inputs only.
            raise MergeError("predict writes from one process: pass --trainer.devices 1")
        check_output(self.path, self.overwrite, PREDICTIONS)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, ScoredModule):
            raise MergeError(
                f"PredictionWriter works on a MergedModel or RoutedModel, not on {type(pl_module).__name__}"
            )
        self.check(trainer)
        data = getattr(trainer, "datamodule", None)
        self._names = class_names(data, pl_module) if isinstance(data, TaskData) else {}
        self._stack = ExitStack()
        routed = isinstance(pl_module, RoutedModel)
        self._file = self._stack.enter_context(writing(self.path, self.overwrite, routed))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._file is not None
        try:
            self._file.write(rows(outputs, batch.get("files"), self._names.get(outputs["task"])))
        except OSError as error:
            reason = error.strerror or error
            raise MergeError(f"{self.path} could not be written: {reason}; nothing was changed") from error

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stack.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The user sees this exception, whatever closing the file says.
        with suppress(Exception):
            self._stack.__exit__(type(exception), exception, exception.__traceback__)


def rows(predicted: Mapping[str, Any], files: Sequence[str] | None, names: Sequence[str] | None) -> Iterator[Row]:
    """What `ScoredModule.predict_step` says of a batch, image by image."""
    if not predicted["probabilities"].isfinite().all():
        raise MergeError(f"task {predicted['task']}: the network answers NaN or infinity", task=predicted["task"])
    columns = (predicted[name].tolist() for name in ("indices", "classes", "probabilities"))
    for i, (index, classes, p) in enumerate(zip(*columns, strict=True)):
        empty = [None] * (TOP - len(classes))
        message = [str(c) if names is None else names[c] for c in classes]
        routed = [predicted[ROUTED][i]] if ROUTED in predicted else []
        yield predicted["task"], index, files[i] if files else None, *message, *empty, *p, *empty, *routed


def class_names(data: TaskData, model: ScoredModule) -> dict[str, Sequence[str]]:
    """task → names of the rows of its head, where data or head know them; where tasks are mixed, those of all tasks.

    Raises:
        MergeError: more or fewer names than rows, or others than the head's.
    """
    heads = model.network.heads
    tasks = heads.mixed if data.mixed else data.tasks
    found = {task: names for task in tasks if (names := row_names(data, heads, task)) is not None}
    if data.mixed:
        # Several tasks may have a class of one name.
        names = [f"{task}/{name}" for task in tasks for name in found.get(task, ())]
        return dict.fromkeys((*data.tasks, MIXED), names) if all(task in found for task in tasks) else {}
    return found


def row_names(data: TaskData, heads: Heads, task: str) -> Sequence[str] | None:
    """What the rows of a task's head are called: as the data writes it, or else as the head does."""
    known = heads.names.get(task)
    split = "test" if data.has_test else "adaptation"
    names = (data.label_names(task, split) or data.class_names(task)) if task in data.tasks else None
    if names is None:
        return known
    if len(names) != (classes := heads.classes(task)):
        raise MergeError(
            f"the data names {len(names)} classes of task {task} ({', '.join(names[:5])}, …), its head has "
            f"{classes}: names are the head's rows, so there must be as many",
            task=task,
        )
    rows = heads.rows_of(task, names, data.names_itself(task))
    if rows is None:
        return names if known is None or numbered(known) else known
    called = dict(zip(rows, names, strict=True))
    return [called[row] for row in range(classes)]
