"""A whole run: evaluate, fit, evaluate again, and leave a folder that tells everything about it."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lit_merge.adaptation.callbacks import (
    CollapseGuard,
    CompressionExport,
    OnlineScores,
    ResumePoint,
    gone_back,
)
from lit_merge.adaptation.callbacks.resume_point import LogFirst
from lit_merge.adaptation.fellows import ending_together
from lit_merge.adaptation.fit_plan import fit_plan
from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.adaptation.run_files import RUN, draw_training, note_files, write_guard, write_run
from lit_merge.adaptation.run_logs import log_into, put_logs
from lit_merge.adaptation.samples import Samples
from lit_merge.adaptation.scoring import Evaluator
from lit_merge.adaptation.trainer import Trainer, check_precision, passing_interrupts
from lit_merge.adaptation.unfinished_fit import UnfinishedFit
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import check_output, replacing
from lit_merge.checkpoints.inputs import check_apart
from lit_merge.checkpoints.locations import destination, resolve
from lit_merge.console import terminal
from lit_merge.data import TaskData
from lit_merge.experts.experts import Experts
from lit_merge.report.report import Report, describe
from lit_merge.report.scores import TaskScore

# Of an unfinished fit: what was predicted of samples before it.
NOTED = "samples.json"


def run_fit(
    trainer: Trainer,
    model: MergedModel,
    data: TaskData,
    output: str | Path,
    experts: Experts | None = None,
    config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    ckpt_path: str | Path | None = None,
) -> Report:
    """Adapts `model` and writes the folder `output`: bank, coefficients, metrics, table, figure, config, versions.

    The folder appears when the run is whole; a run that fails leaves nothing. One that was killed, or failed after its
    first `ResumePoint`, leaves a hidden folder next to `output`, from which the same call goes on to the same bits.
    Without labelled test images there are neither accuracies nor a figure.

    Args:
        trainer: with `max_steps`, usually `model.total_steps`.
        model: what to adapt.
        data: where the unlabelled and the test images come from.
        output: the folder.
        experts: for the columns `pretrained` (where they have a base) and `expert`.
        config: what is written as config.yaml.
        overwrite: replace what stands at `output`.
        ckpt_path: a checkpoint of a fit of the same bank to go on from.

    Raises:
        MergeError: nothing to adapt, an output that exists or cannot be written, an unfinished run of another fit
            next to it, or anything wrong with the data.
    """
    model.check_learnable()
    check_precision(trainer, model.compute_dtype, model.options)
    first, start = trainer.is_global_zero, model.to_bank()
    if not data.online and not any(isinstance(one, CollapseGuard) for one in trainer.callbacks):
        # An online stream is not looked at before it comes.
        trainer.callbacks.insert(0, CollapseGuard())
    plan = fit_plan(trainer, model, start, data, experts, ckpt_path)
    if first:
        check_apart(check_output(output, overwrite, RUN), [] if experts is None else experts.files)
    place = replacing(output, overwrite, RUN) if first else nullcontext(destination(output))
    with (
        UnfinishedFit(output, plan, overwrite, first) as unfinished,
        place as folder,
        ending_together(trainer, unfinished.fate),
        passing_interrupts(),
    ):
        keep_resume_points(trainer, unfinished)
        model.teachers_file = unfinished.folder / "teachers.safetensors" if first else None
        log_into(trainer, output, unfinished)
        for callback in trainer.callbacks:
            if isinstance(callback, CompressionExport):
                callback.outputs = unfinished
        scores = dict(unfinished.scores or {})
        samples = Samples(data, unfinished.read(NOTED)) if data.has_test else None
        if unfinished.scores is None and samples is not None:
            with isolate_rng():
                scores = reference_scores(trainer, model, data, experts, samples)
            samples.gather()
            if first:
                unfinished.write(NOTED, samples.seen)
            unfinished.write_scores(scores)
        given = None if ckpt_path is None else resolve(ckpt_path)
        goes_on = given if unfinished.step is None else unfinished.checkpoint
        online = watch(trainer) if data.online else None
        trainer.fit(model, datamodule=data, ckpt_path=goes_on, weights_only=True)
        if online is not None and online.scores:
            scores["online"] = online.scores
        bank = model.to_bank()
        scores |= adapted_scores(trainer, model, data, start, bank, samples)
        if samples is not None:
            samples.gather()
        bank_bytes = _save_bank(bank, folder) if trainer.is_global_zero else bank.nbytes
        sizes = {"bank": bank_bytes} | ({"experts": experts.nbytes} if experts else {})
        kept = gone_back(trainer)
        report = Report(describe(bank), data.protocol, scores, sizes, kept=kept, objectives=model.turning)
        if trainer.is_global_zero:
            write_run(folder, report, start, bank, config)
            write_guard(folder, trainer)
            if samples is not None:
                samples.write(folder, model, data)
            put_logs(trainer, folder, unfinished)
            draw_training(folder)
            note_files(folder)
            unfinished.placing(folder)
    return report


def keep_resume_points(trainer: Trainer, unfinished: UnfinishedFit) -> None:
    """Has the fit write checkpoints to go on from, and says where it goes on."""
    callbacks = trainer.callbacks
    point = next((one for one in callbacks if isinstance(one, ResumePoint)), None) or ResumePoint()
    point.path, point.begins = unfinished.checkpoint, unfinished.step
    # The last one, so that what the others keep is of the same step.
    trainer.callbacks = [LogFirst(point), *(one for one in callbacks if one is not point), point]
    if unfinished.step is not None and trainer.is_global_zero:
        whole = f" of {trainer.max_steps}" if trainer.max_steps > 0 else ""
        terminal(stderr=True).print(f"going on at step {unfinished.step}{whole} ({unfinished.folder})", soft_wrap=True)


def watch(trainer: Trainer) -> OnlineScores:
    """The callback that keeps what is predicted of an online stream: the trainer's own, or one that it is given."""
    for callback in trainer.callbacks:
        if isinstance(callback, OnlineScores):
            return callback
    trainer.callbacks.insert(0, found := OnlineScores())
    return found


def reference_scores(
    trainer: Trainer, model: MergedModel, data: TaskData, experts: Experts | None, samples: Samples
) -> dict[str, Mapping[str, TaskScore]]:
    """Scores of what the merge is measured against, as far as it is known; `samples` notes what is predicted."""
    scores: dict[str, Mapping[str, TaskScore]] = {}
    if experts is not None and experts.base is not None:
        base = experts.base
        pretrained = {name: _as(model, base.read(name)) for name in base.shapes}
        scores["pretrained"] = score(
            trainer, model, data, "pretrained", lambda task: pretrained, samples.of("pretrained")
        )
    if experts is not None:
        read, names = experts.checkpoints, experts.shapes
        expert = lambda task: {name: _as(model, read[task].read(name)) for name in names}  # noqa: E731
        scores["expert"] = score(trainer, model, data, "experts", expert, samples.of("expert"))
    merged = {name: value.detach() for name, value in model.merged_weights().items()}
    scores["static"] = score(trainer, model, data, "static merge", lambda task: merged, samples.of("static"))
    return scores


def adapted_scores(
    trainer: Trainer, model: MergedModel, data: TaskData, start: TaskBank, bank: TaskBank, samples: Samples | None
) -> dict[str, Mapping[str, TaskScore]]:
    """Scores of the adapted bank, and of what it was when another objective took over, where labels are known."""
    if samples is None:
        return {}
    banks = {"adapted": bank}
    if model.turn is not None:
        learnt = dict(model.turn)
        coefficients = learnt.pop("coefficients").to(start.coefficients.dtype)
        banks = {"first": replace(start, coefficients=coefficients, learnt=learnt)} | banks
    found: dict[str, Mapping[str, TaskScore]] = {}
    for state, one in banks.items():
        merged = one.merge(dtype=model.compute_dtype, naming="canonical")
        found[state] = score(trainer, model, data, state, _same(merged), samples.of(state))
    return found


def score(
    trainer: Trainer,
    model: MergedModel,
    data: TaskData,
    label: str,
    weights: Callable[[str], Mapping[str, Tensor]],
    note: Callable[[Mapping[str, Any], Tensor, Tensor], None] | None = None,
) -> dict[str, TaskScore]:
    """Test accuracy and entropy per task of weights that may depend on the task; `label` names them in the bar, `note`
    sees every batch."""
    evaluator = Evaluator(model.network, model.tasks, weights, label, note)
    trainer.test(evaluator, datamodule=data, verbose=False)
    return evaluator.scores


def _same(weights: Mapping[str, Tensor]) -> Callable[[str], Mapping[str, Tensor]]:
    """These weights for every task."""
    return lambda task: weights


def _as(model: MergedModel, value: Tensor) -> Tensor:
    return value.to(model.compute_dtype) if value.is_floating_point() else value


def _save_bank(bank: TaskBank, folder: Path) -> int:
    folder.mkdir(exist_ok=True)
    bank.save(folder / "bank")
    return sum(file.stat().st_size for file in (folder / "bank").iterdir())
