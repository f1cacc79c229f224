"""The files of a run: what they are called, and how they are written."""

import csv
import io
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from lit_merge.adaptation.callbacks import CollapseGuard
from lit_merge.bank.files import BANK
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import write_text
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.manifest import write_manifest
from lit_merge.report.accuracy_figure import accuracy_figure
from lit_merge.report.figure_files import save_both
from lit_merge.report.report import Report
from lit_merge.report.run_folder import GUARD, RunFolder
from lit_merge.report.training_figure import training_figure

TEXTS = (".csv", ".json", ".jsonl", ".txt", ".yaml")
PACKAGES = ("lit_merge", "lightning", "torch", "torchmetrics", "open_clip_torch", "safetensors")


def _is_run(folder: Path) -> bool:
    return "lit_merge" in parse_json((folder / "versions.json").read_bytes()) and BANK.is_one(folder / "bank")


RUN = Kind(
    "fit",
    _is_run,
    rf"bank/({BANK.files})|metrics\.(json|csv)|table\.txt|coefficients\.csv|(versions|digests)\.json|"
    r"config\.yaml|(accuracy|training)\.(png|svg)|guard\.csv|samples\.jsonl|coefficients/coefficients_\w+\.(csv|png|svg)|"
    # Of loggers, wherever in the run they write.
    r"(.+/)?(metrics\.csv|hparams\.yaml|events\.out\.tfevents\..+|checkpoints/[^/]+\.ckpt)",
)


def write_run(
    folder: Path, report: Report, start: TaskBank, adapted: TaskBank, config: Mapping[str, Any] | None
) -> None:
    """All files of a run but the bank and the training log."""
    write_text(folder / "metrics.json", report.to_json())
    write_text(folder / "metrics.csv", report.to_csv())
    write_text(folder / "table.txt", report.to_text())
    write_text(folder / "coefficients.csv", coefficients_csv(start, adapted))
    write_text(folder / "versions.json", json.dumps(versions(), indent=1) + "\n")
    if config is not None:
        write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    if report.states:
        save_both(accuracy_figure(report), folder, "accuracy")


def coefficients_csv(start: TaskBank, adapted: TaskBank) -> str:
    """A line per task and weight: the coefficient before and after. Where directions have coefficients of their own,
    these are means, and the lowest, the highest and the standard deviation stand next to them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    directions = adapted.directions
    writer.writerow(["task", "weight", "start", "adapted", *(["lowest", "highest", "deviation"] if directions else [])])
    rows = ("all",) if adapted.shared else adapted.tasks
    for t, task in enumerate(rows):
        for i, name in enumerate(adapted.layers):
            before, after = start.coefficients[t, i].item(), adapted.coefficients[t, i].item()
            spread = [""] * 3 if directions else []
            if name in directions:
                one = directions[name][t]
                spread = [f"{value.item():.9g}" for value in (one.min(), one.max(), one.std(correction=0))]
            writer.writerow([task, name, f"{before:.9g}", f"{after:.9g}", *spread])
    return text.getvalue()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def write_guard(folder: Path, trainer: Trainer) -> None:
    """Writes what the trainer's guard saw: a line per look and task, the mean in none. Without a guard, no file."""
    looks = [look for one in trainer.callbacks if isinstance(one, CollapseGuard) for look in one.looks]  # type: ignore[attr-defined]
    if not looks:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "task", "entropy", "balance", "agreement", "churn"])
    for look in looks:
        for task in look["entropy"]:
            seen = (look["entropy"][task], look["balance"][task], look["agreement"].get(task), look["churn"])
            writer.writerow([look["step"], task, *("" if value is None else f"{value:.6g}" for value in seen)])
    write_text(folder / GUARD, text.getvalue())


def note_files(folder: Path) -> None:
    """Notes the digests of all texts of a run that is whole; its bank has some of its own."""
    texts = [path for path in folder.rglob("*") if path.suffix in TEXTS and (folder / "bank") not in path.parents]
    write_manifest(folder, texts)


def draw_training(folder: Path) -> None:
    """Draws the log and the guard's looks, which lie in the folder."""
    save_both(training_figure(RunFolder(folder)), folder, "training")
