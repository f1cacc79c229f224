"""What lies in the folder of a run of fit, read for people: older runs have less, and none of it is needed."""

import csv
import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.json_text import entries_of, parse_json
from lit_merge.checkpoints.locations import expanded, resolve
from lit_merge.checkpoints.manifest import check_noted
from lit_merge.errors import MergeError
from lit_merge.report.report import METRICS, Report

GUARD = "guard.csv"
"""What the guard saw: a line per look and task."""
SAMPLES = "samples.jsonl"
"""A few test inputs with their predictions: a line of JSON for each."""
LOG = "log/metrics.csv"
COEFFICIENTS = "coefficients/coefficients_log.csv"
# Bytes: a long fit of a large model logs more than other texts have.
LONGEST, EXPECTED = 1 << 28, "a file of a run"


@dataclass(frozen=True)
class Look:
    """The coefficients at one step: task → a value per weight."""

    step: int
    values: dict[str, list[float]]


class RunFolder:
    """A folder that `fit` has written. What a run lacks is None or empty.

    Args:
        location: of the folder.

    Raises:
        MergeError: there is none, or it holds neither results nor a bank; later on, a file that is damaged.
    """

    def __init__(self, location: str | Path) -> None:
        # What a command has written itself is none of its inputs.
        self.path = expanded(location) if isinstance(location, Path) else resolve(location)
        if not self.path.is_dir() or not ((self.path / METRICS).is_file() or (self.path / "bank").is_dir()):
            raise MergeError(f"{location} is no run: give a folder that `fit` has written (it has a {METRICS})")

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @functools.cached_property
    def report(self) -> Report | None:
        return Report.load(self.path) if (self.path / METRICS).is_file() else None

    @functools.cached_property
    def bank(self) -> TaskBank | None:
        return TaskBank.load(self.path / "bank") if (self.path / "bank" / "bank.json").is_file() else None

    @functools.cached_property
    def log(self) -> list[dict[str, float]]:
        """What was logged, by step; what a step did not log is left out."""
        rows = self._rows(self._log_file(), "step")
        return [{name: float(value) for name, value in row.items() if value} for row in rows]

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one column of the log."""
        return [(int(row["step"]), row[name]) for row in self.log if name in row]

    @functools.cached_property
    def guard(self) -> list[dict[str, Any]]:
        """What the guard saw: step, task, entropy, balance, agreement (None where it was not asked), churn."""
        rows = self._rows(self.path / GUARD, "step", "task", "entropy", "balance", "agreement", "churn")
        return [
            {"task": row.pop("task"), "step": int(row.pop("step"))}
            | {name: float(value) if value else None for name, value in row.items()}
            for row in rows
        ]

    @functools.cached_property
    def coefficients(self) -> tuple[list[str], list[Look]]:
        """Names of the weights, and their coefficients at every step that was looked at, start and end among them."""
        rows = self._rows(self.path / COEFFICIENTS, "step", "task")
        layers = [name for name in rows[0] if name not in ("step", "task")] if rows else []
        looks: dict[int, dict[str, list[float]]] = {}
        for row in rows:
            looks.setdefault(int(row["step"]), {})[row["task"]] = [float(row[name] or "nan") for name in layers]
        if any(look.keys() != looks[int(rows[0]["step"])].keys() for look in looks.values()):
            raise self._damaged(COEFFICIENTS)
        return layers, [Look(step, values) for step, values in sorted(looks.items())]

    @property
    def versions(self) -> Mapping[str, Any]:
        return entries_of(self.path / "versions.json")

    @property
    def config(self) -> str:
        """The resolved configuration as YAML; empty where there is none."""
        return self._text(self.path / "config.yaml")

    @property
    def samples(self) -> list[dict[str, Any]]:
        try:
            return [_sample(parse_json(line)) for line in self._text(self.path / SAMPLES).split("\n") if line]
        except MergeError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise self._damaged(SAMPLES) from error

    def _log_file(self) -> Path:
        """The run's own log, or that of a CSV logger in its folder."""
        own = self.path / LOG
        others = sorted(path for path in self.path.glob("*/**/metrics.csv") if path != own)
        return own if own.is_file() or not others else others[-1]

    def _rows(self, path: Path, *needed: str) -> list[dict[str, str]]:
        text = self._text(path)
        try:
            # A cell more than there are columns has the key None; loggers of Lightning write such lines.
            reader = csv.DictReader(io.StringIO(text, newline=""))
            found = list(reader)
            rows = [row for row in found if None not in row]
            if "task" in needed and len(rows) < len(found):
                raise ValueError("a line with more cells than columns")
            if "task" in needed and path.is_file() and not {*(reader.fieldnames or ())} >= {*needed}:
                raise ValueError("no line, or another column")
            for row in rows:
                if not row.keys() >= set(needed) or not row["step"].isdecimal():
                    raise ValueError("a line without its step, or another column")
                _check_numbers({name: value for name, value in row.items() if name != "task"})
        except (csv.Error, ValueError) as error:
            raise self._damaged(path.name) from error
        return rows

    def _text(self, path: Path) -> str:
        if not path.is_file():
            return ""
        content = InputFile(path, EXPECTED).text(EXPECTED, LONGEST)
        check_noted(self.path, path, content)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._damaged(path.name) from error

    def _damaged(self, name: str) -> MergeError:
        return MergeError(f"{self.path / name} is damaged: remove it, and the report goes without")


def _sample(about: Mapping[str, Any]) -> dict[str, Any]:
    """Of a line of samples, what is shown. Fails in many ways where it is something else."""
    picture, text = about.get("picture"), about.get("text")
    if picture is not None and not picture.startswith("data:image/"):
        raise ValueError("a picture that is elsewhere")
    predictions = {
        str(state): [(str(name), float(p)) for name, p in found] for state, found in about["predictions"].items()
    }
    place = {"task": str(about["task"]), "index": int(about["index"]), "label": str(about["label"])}
    return place | {"picture": picture, "text": text if text is None else str(text), "predictions": predictions}


def _check_numbers(row: Mapping[str, str | None]) -> None:
    """Raises ValueError where a cell is no number; an empty one is none that is missing."""
    for value in row.values():
        if value is None:
            raise ValueError("a line that is cut short")
        float(value or 0)
