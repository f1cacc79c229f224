"""The result of a run: one table, and the same as JSON, CSV and text."""

import csv
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from lit_merge.bank.learnt import relative_size
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints.json_text import parse_json, read_object, sealed, unsealed
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import expanded, resolve
from lit_merge.console import table, terminal
from lit_merge.errors import MergeError
from lit_merge.report.scores import TaskScore, mean_accuracy

# What a row of the table may be about, in the order of columns and bars.
STATES = ("pretrained", "static", "online", "first", "adapted", "routed", "routing", "expert")
HEADINGS = {
    "pretrained_accuracy": "pretrained",
    "expert_accuracy": "expert",
    "static_accuracy": "static\nmerge",
    "online_accuracy": "online",
    "first_accuracy": "first\nobjective",
    "adapted_accuracy": "adapted",
    "routed_accuracy": "routed",
    "routing_accuracy": "routed to\nits task",
    "static_entropy": "entropy\nstatic",
    "adapted_entropy": "entropy\nadapted",
    "normalised_accuracy": "normalised\naccuracy",
}
# Next to the column of an online stream, so that 80 letters still hold the names of tasks.
NARROW = {"pretrained_accuracy": "pre-\ntrained", "normalised_accuracy": "norm.\nacc."}
SHORT = {"ExpertAgreement": "experts"}
"""Objectives whose names are long."""


METRICS = "metrics.json"
"""Of a run's folder, the file with its scores."""


def _is_report(path: Path) -> bool:
    return {"method", "protocol", "split", "mean", "tasks"} <= parse_json(path.read_bytes()).keys()


REPORT = Kind("test", _is_report)


@dataclass
class Report:
    """Scores by state and task, and sizes in bytes.

    Args:
        method: what was merged how, in words.
        protocol: which images were adapted and tested on.
        scores: state (`pretrained`, `static`, `online`, `first`, `adapted`, `routed`, `expert`) → task → score; states
            not measured are left out. `online` is what was predicted of a stream while it passed, of tasks whose labels
            are known; `first` is the merge when another objective took over; `routing` the share of inputs that were
            taken for those of their task.
        sizes: `experts` and `bank`, in bytes.
        split: the images that the scores are of.
        objectives: of the fit: which one another took over from, and that one; None where there was one only.
        kept: of a fit whose guard went back: the `step` whose coefficients were kept, the one `at` which, and `why`.
    """

    method: str
    protocol: str
    scores: dict[str, Mapping[str, TaskScore]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    split: str = "test"
    kept: Mapping[str, Any] | None = None
    objectives: tuple[str, str] | None = None

    @classmethod
    def load(cls, run: str | Path) -> "Report":
        """What `to_json` has written: the folder of a run, or a file such as `test --output` leaves.

        Raises:
            MergeError: no such file, another one, or one that was changed since.
        """
        path = expanded(run) if isinstance(run, Path) else resolve(run)
        path = path / METRICS if path.is_dir() else path
        found = read_object(path, "report of a run")
        try:
            # Those of earlier versions have no digest.
            found = unsealed(found) if "digest" in found else found
        except ValueError as error:
            raise MergeError(f"{path} was changed after it was written: copy it again, or make it anew") from error
        try:
            scores = {state: of_state for state in STATES if (of_state := _scores(found["tasks"], state))}
            sizes = {name: int(size) for name, size in found.get("bytes", {}).items()}
            if kept := found.get("kept"):
                kept = {**kept, "step": int(kept["step"]), "why": str(kept["why"])}
            first, second = found.get("objectives") or ("", "")
            turn = (str(first), str(second)) if first else None
            return cls(str(found["method"]), str(found["protocol"]), scores, sizes, str(found["split"]), kept, turn)
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise MergeError(f"{path} holds no results of a run: give a folder that `fit` has written") from error

    @property
    def states(self) -> list[str]:
        return [state for state in STATES if self.scores.get(state)]

    @property
    def tasks(self) -> list[str]:
        return list(next(iter(self.scores.values()), {}))

    def label(self, state: str) -> str:
        """What a state is called where there is little room."""
        if self.objectives and state in ("first", "adapted") and "first" in self.states:
            name = self.objectives[state == "adapted"]
            # Words, between which narrow columns break.
            return f"by {SHORT.get(name) or re.sub('(?<=[a-z])(?=[A-Z])', ' ', name).lower()}"
        return state

    def normalised(self, task: str) -> float | None:
        """Accuracy of the adapted (or static) merge over the expert's."""
        best = self.scores.get("adapted") or self.scores.get("static")
        expert = self.scores.get("expert")
        # An expert that is never right has no share to reach.
        if not best or not expert or not expert[task].accuracy:
            return None
        return best[task].accuracy / expert[task].accuracy

    def row(self, task: str) -> dict[str, float | int | None]:
        """Everything about one task."""
        found: dict[str, float | int | None] = {}
        for state in self.states:
            # Only the labels of a stream can be missing.
            found[f"{state}_accuracy"] = score.accuracy if (score := self.scores[state].get(task)) else None
        for state in ("static", "adapted"):
            if state in self.states:
                found[f"{state}_entropy"] = self.scores[state][task].entropy
        if "expert" in self.states and {"static", "adapted"} & set(self.states):
            found["normalised_accuracy"] = self.normalised(task)
        found["images"] = next(iter(self.scores.values()))[task].images
        return found

    def mean_row(self) -> dict[str, float | int | None]:
        """Means over tasks, whatever their sizes; images are summed."""
        rows = [self.row(task) for task in self.tasks]
        mean: dict[str, float | int | None] = {}
        for key in rows[0] if rows else ():
            values = [value for row in rows if (value := row[key]) is not None]
            mean[key] = sum(values) if key == "images" else sum(values) / len(values) if values else None
        return mean

    def to_json(self) -> str:
        content = {
            "method": self.method,
            "protocol": self.protocol,
            "split": self.split,
            "mean": {state: mean_accuracy(self.scores[state]) for state in self.states},
            "tasks": {task: self.row(task) for task in self.tasks},
            "bytes": self.sizes,
        }
        content |= {"kept": dict(self.kept)} if self.kept else {}
        content |= {"objectives": list(self.objectives)} if self.objectives else {}
        return sealed(content, indent=1) + "\n"

    def to_csv(self) -> str:
        text = io.StringIO()
        rows = {task: self.row(task) for task in self.tasks} | ({"mean": self.mean_row()} if self.tasks else {})
        writer = csv.DictWriter(text, ["task", *self.mean_row()], lineterminator="\n")
        writer.writeheader()
        for task, row in rows.items():
            writer.writerow({"task": task} | row)
        return text.getvalue()

    def to_text(self, width: int = 110) -> str:
        console = terminal(file=io.StringIO(), width=width)
        console.print(self)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def __rich__(self) -> Group:
        if not self.tasks:
            notes = [f"No accuracies: there are no labelled {self.split} inputs. Protocol: {self.protocol}."]
            notes.append(self.kept_line())
            return Group(Text(self.method, style="bold"), Text("\n".join(filter(None, [*notes, self.size_line()]))))
        keys = [key for key in HEADINGS if key in self.row(self.tasks[0])]
        headings = HEADINGS | (NARROW if {"online", "first"} & set(self.states) else {})
        if "first" in self.states:
            headings |= {f"{state}_accuracy": self.label(state).replace(" ", "\n") for state in ("first", "adapted")}
        numbers = [headings[key] for key in keys]
        made = table("task", *numbers, right=numbers)
        for task in self.tasks:
            made.add_row(Text(task), *(_cell(key, self.row(task)[key]) for key in keys))
        made.add_section()
        made.add_row("mean", *(_cell(key, self.mean_row()[key]) for key in keys), style="bold")
        units = f"Accuracies on {self.split} data in %, entropies in nats. Protocol: {self.protocol}."
        notes = [units, self.kept_line(), self.size_line()]
        return Group(Text(self.method, style="bold"), made, Text("\n".join(filter(None, notes))))

    def kept_line(self) -> str:
        """What the guard kept, in words."""
        return f"Kept: the coefficients of step {self.kept['step']}: {self.kept['why']}." if self.kept else ""

    def size_line(self) -> str:
        """The sizes in words."""
        experts, bank = self.sizes.get("experts"), self.sizes.get("bank")
        if not bank:
            return ""
        size = f"task bank {bank / 1e6:.1f} MB"
        if not experts:
            return f"A {size}."
        return f"Experts together {experts / 1e6:.1f} MB, {size}: {bank / experts:.0%} of that."


def _scores(rows: Mapping[str, Mapping[str, Any]], state: str) -> Mapping[str, TaskScore]:
    """Task → score of one state; where the entropy was not written, it is NaN."""
    return {
        task: TaskScore(float(value), float(row.get(f"{state}_entropy", math.nan)), int(row["images"]))
        for task, row in rows.items()
        if (value := row.get(f"{state}_accuracy")) is not None
    }


def _cell(key: str, value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if key.endswith("entropy") else f"{100 * value:.1f}"


def describe(bank: TaskBank) -> str:
    """The method in words: CART(rank_ratio=0.16, …) of 8 experts; what a transform did; a scale that a rule chose."""
    about: Mapping[str, Any] = bank.method
    words = f"{describe_method(about) or 'bank'} of {len(bank.tasks)} experts"
    if "chosen" in about:
        words += f", scaling {about['chosen']['scaling']:.4g} chosen by {about['init_args']['scaling']}"
    if "transform" in about:
        transform: Mapping[str, Any] = about["transform"]
        message = {k: v for k, v in transform.items() if k not in ("class_path", "init_args")}
        words = f"{describe_method(transform)} and {words}" + "".join(
            f", {k.replace('_', ' ')} {v:.4g}" for k, v in message.items()
        )
    if bank.directions:
        words += ", a coefficient for every direction"
    if bank.correction:
        words += f", a shared correction of {100 * relative_size(bank.learnt, bank.origin):.2g} % of the origin's norm"
    return words


def describe_method(about: Mapping[str, Any]) -> str:
    """Class and options, as CART(rank_ratio=0.16, …)."""
    options = ", ".join(f"{k}={v}" for k, v in (about.get("init_args") or {}).items() if v is not None)
    return f"{about['class_path']}({options})" if "class_path" in about else ""
