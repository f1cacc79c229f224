"""CoefficientLog: every coefficient of a fit as numbers and as pictures."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_merge.adaptation.callbacks.collapse_guard import gone_back
from lit_merge.adaptation.coefficients import by_row
from lit_merge.adaptation.figure_logging import log_figure, log_histograms
from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.bank.learnt import DIRECTIONS
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import check_output, write_text
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.manifest import digest_of
from lit_merge.checkpoints.own import own
from lit_merge.errors import MergeError
from lit_merge.report.coefficient_figure import coefficient_figure
from lit_merge.report.figure_files import save_both

LOG = "coefficients_log.csv"
COEFFICIENTS = Kind(
    "fit", lambda folder: (folder / LOG).is_file(), r"coefficients_(log\.csv|(start|end|step_\d+)\.(png|svg))"
)


class CoefficientLog(Callback):
    """Writes the coefficients at the start of a fit, every so many steps, and at its end: lines of
    `coefficients_log.csv` and a heat map of task × layer, as PNG and SVG. TensorBoard, Weights & Biases and MLflow get
    the heat maps, the first two a histogram per task too. Every logger gets each task's mean, `coefficient/TASK`, at
    every step it logs.

    Args:
        every_n_steps: optimiser steps between two looks; 0 looks at the start and at the end only.
        folder: a new folder to write to; by default `coefficients` in the run's folder (`fit`), or in the folder of the
            trainer's logger.
        figures: whether to draw.
        overwrite: write into a folder that exists.

    Raises:
        MergeError: a negative number of steps; before the first step: a folder that exists or cannot be written.
    """

    def __init__(
        self, every_n_steps: int = 100, folder: str | None = None, figures: bool = True, overwrite: bool = False
    ) -> None:
        if every_n_steps < 0:
            raise MergeError(f"CoefficientLog: every_n_steps={every_n_steps}, expected 0 or more")
        self.every_n_steps, self.folder, self.figures, self.overwrite = every_n_steps, folder, figures, overwrite
        self.run_folder: Path | None = None
        """Set by a run, which puts what is written there in its place when it is whole."""
        self.goes_on = False
        """Set by a run whose checkpoint is of an earlier attempt: what that one had logged lies in `run_folder`."""
        self._state: dict[str, Any] | None = None
        # Until a fit begins: no log lies there.
        self._folder, self._logged = Path(os.devnull), -1

    @property
    def state_key(self) -> str:
        """Several may log in one fit."""
        return self._generate_state_key(folder=self.folder, every_n_steps=self.every_n_steps)

    def state_dict(self) -> dict[str, Any]:
        """Size and digest of the log, for an attempt that goes on from here."""
        path = self._folder / LOG
        content = path.read_bytes() if path.is_file() else b""
        return {"size": len(content), "digest": digest_of(content)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = dict(state_dict)

    def check_kept(self) -> None:
        """Raises MergeError where a fit that was over at its checkpoint, and so did not start again, finds another log
        than it had left."""
        if self._state is not None and self.run_folder is not None and self._folder == Path(os.devnull):
            _cut_log(self.run_folder / LOG, **self._state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, MergedModel):
            raise MergeError(f"CoefficientLog works on a MergedModel, not on {type(pl_module).__name__}")
        if self.run_folder is not None:
            self._folder = self.run_folder
        elif self.folder is not None:
            self._folder = destination(self.folder)
        else:
            # In all processes: asking the trainer for a logger's folder is an exchange between them.
            self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "coefficients"
        self._logged = -1
        if trainer.is_global_zero:
            if trainer.global_step == 0 and self.run_folder is None:
                check_output(self._folder, self.overwrite, COEFFICIENTS, how="set overwrite of CoefficientLog")
            if self.goes_on and self._state is not None:
                _cut_log(self._folder / LOG, **self._state)
            self._logged = _start_log(self._folder / LOG, pl_module.bank.layers, trainer.global_step)
            if self._logged < 0:
                self._look(trainer, pl_module, f"step_{trainer.global_step:05d}" if trainer.global_step else "start")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: object) -> None:
        assert isinstance(pl_module, MergedModel)
        means = by_row(pl_module.tasks, pl_module.coefficients().detach())
        pl_module.log_dict({f"coefficient/{row}": values.mean() for row, values in means.items()})
        step = trainer.global_step
        due = self.every_n_steps and step % self.every_n_steps == 0 and step not in (self._logged, trainer.max_steps)
        if due and trainer.is_global_zero:
            self._look(trainer, pl_module, f"step_{step:05d}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MergedModel)
        if trainer.is_global_zero and not trainer.interrupted:
            if gone_back(trainer):
                # The line of this step, if there is one, is of what was thrown away.
                self._logged = _start_log(self._folder / LOG, pl_module.bank.layers, trainer.global_step - 1)
            self._look(trainer, pl_module, "end")

    def _look(self, trainer: Trainer, model: MergedModel, name: str) -> None:
        """Writes and draws the coefficients as they are."""
        step, start = trainer.global_step, model.bank.coefficients.cpu()
        values = model.coefficients.values().detach().cpu()
        directions = model.coefficients.by_direction(values)
        learnt = {f"{DIRECTIONS}/{weight}": value for weight, value in directions.items()}
        bank = replace(model.bank, coefficients=model.coefficients.by_weight(values), learnt=learnt)
        if step != self._logged:
            _append(self._folder / LOG, bank, step)
        self._logged = step
        log_histograms(trainer.loggers, "coefficients", by_row(bank.tasks, bank.coefficients), step)
        if self.figures:
            back = gone_back(trainer)
            message = f"step {step}" if back is None else f"those of step {back['step']} were kept, {back['why']}"
            figure = coefficient_figure(bank, start, message)
            save_both(figure, self._folder, f"coefficients_{name}", overwrite=True)
            log_figure(trainer.loggers, "coefficients", figure, step)


def _start_log(path: Path, layers: Sequence[str], step: int) -> int:
    """An empty log; in a fit that goes on after a step, what was written until then. Answers its last step, or -1."""
    head, kept = ["step", "task", *layers], list[list[str]]()
    if step > 0 and path.exists():
        try:
            with path.open(encoding="utf-8", newline="") as file:
                whole = [line for line in csv.reader(file) if len(line) == len(head) and line[0].isdecimal()]
        except (OSError, ValueError, csv.Error) as error:
            raise MergeError(f"{path} is damaged: remove {path.parents[1]} to start afresh") from error
        kept = [line for line in whole if int(line[0]) <= step]
    # Whole or not at all: a kill must not cost what is kept.
    write_text(path, _csv([head, *kept]), overwrite=True)
    return int(kept[-1][0]) if kept else -1


def _cut_log(path: Path, size: int, digest: str) -> None:
    """Takes away what was logged after a checkpoint.

    Raises:
        MergeError: what was logged until then is not there as it was.
    """
    try:
        with open(path, "rb", opener=own) as file:
            content = file.read()[:size]
    except OSError:
        content = b""
    if digest_of(content) != digest:
        raise MergeError(f"{path} is damaged: remove {path.parents[2]} to start afresh")
    write_text(path, content.decode(), overwrite=True)


def _append(path: Path, bank: TaskBank, step: int) -> None:
    rows = by_row(bank.tasks, bank.coefficients).items()
    text = _csv([str(step), row, *(f"{value:.9g}" for value in values.tolist())] for row, values in rows)
    try:
        with open(path, "ab", buffering=0, opener=own) as file:
            file.write(text.encode())
            # A checkpoint that lasts says what it holds.
            os.fsync(file.fileno())
    except OSError as error:
        raise MergeError(f"{path} could not be written: {error.strerror}") from error


def _csv(lines: Iterable[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
