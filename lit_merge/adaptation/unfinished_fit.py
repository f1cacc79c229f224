"""The state of a fit that is not finished: the same command goes on from there."""

import csv
import io
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_merge.adaptation.training_checkpoint import read_training_checkpoint
from lit_merge.checkpoints.unfinished import UnfinishedOutput
from lit_merge.errors import MergeError
from lit_merge.report.scores import TaskScore

Scores = dict[str, Mapping[str, TaskScore]]


class UnfinishedFit(UnfinishedOutput):
    """`runs/.x.unfinished` of the run `runs/x`: plan.json, scores.json (of what the merge is measured against),
    step.ckpt, and log/, the training log of every attempt by the step at which it began.

    As a context it is removed when the run is whole, or fails without a checkpoint.

    Args:
        run: the folder of the run.
        plan: what makes two fits the same, by names for people.
        overwrite: start afresh where the folder is of another fit.
        first: off for all processes of a run but the first: they only read.

    Attributes:
        step: to go on from; None at the start.
        scores: that were measured before the fit; None where they were not.

    Raises:
        MergeError: the folder is of another fit and `overwrite` is off; it is damaged, or cannot be written; another
            process is at work on the same run.
    """

    kind, other = "an unfinished fit", "another --run"

    def __init__(self, run: str | Path, plan: Mapping[str, Any], overwrite: bool = False, first: bool = True) -> None:
        super().__init__(run, first)
        self.checkpoint = self.folder / "step.ckpt"
        try:
            goes_on = self.goes_on(plan, overwrite)
            if not goes_on and self.checkpoint.exists() and not (self.folder / self.plan_file).exists():
                raise MergeError(f"{self.folder} is damaged: it has no {self.plan_file}: remove it")
            if first and not goes_on:
                self.begin(plan)
            self.step = self._step() if goes_on else None
            self.scores = self._scores() if goes_on else None
        except BaseException:
            self.release()
            raise
        if first:
            # Of an attempt that got further than its last checkpoint.
            for place in self._attempts():
                if int(place.name) >= (self.step or 0):
                    shutil.rmtree(place)
            if self.step is None:
                shutil.rmtree(self.folder / "coefficients", ignore_errors=True)

    def outlives(self, error: BaseException | None) -> bool:
        return error is not None and self.checkpoint.exists()

    def write_scores(self, scores: Scores) -> None:
        """Remembers what is measured before the fit."""
        rows = {state: {task: one.as_dict() for task, one in by_task.items()} for state, by_task in scores.items()}
        if self.first:
            self.write("scores.json", rows)

    def whole_log(self) -> str:
        """The training log of all attempts as CSV, every step once."""
        attempts = self._attempts()
        rows: list[dict[str, str]] = []
        for place, following in zip(attempts, [*attempts[1:], None], strict=True):
            ends = math.inf if following is None else int(following.name)
            rows += [row for row in self._log(place) if int(row["step"]) < ends]
        columns = sorted(set().union(*rows))
        joined = io.StringIO()
        writer = csv.DictWriter(joined, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return joined.getvalue()

    def _log(self, place: Path) -> list[dict[str, str]]:
        """What an attempt has written; a kill may have cut its last line short."""
        try:
            text = (place / "metrics.csv").read_text(encoding="utf-8") if (place / "metrics.csv").exists() else ""
            rows = list(csv.DictReader(io.StringIO(text)))
        except (OSError, ValueError, csv.Error) as error:
            raise self.damaged(f"log/{place.name}/metrics.csv") from error
        whole = [None not in row and None not in row.values() and row.get("step", "").isdecimal() for row in rows]
        if not all(whole[:-1]):
            raise self.damaged(f"log/{place.name}/metrics.csv")
        return [row for row, one in zip(rows, whole, strict=True) if one]

    def _attempts(self) -> list[Path]:
        places = list((self.folder / "log").iterdir()) if (self.folder / "log").is_dir() else []
        if other := [place.name for place in places if not place.name.isdecimal()]:
            raise self.damaged(f"log/{other[0]}")
        return sorted(places, key=lambda place: int(place.name))

    def _step(self) -> int | None:
        if not self.checkpoint.exists():
            return None
        try:
            return int(read_training_checkpoint(self.checkpoint)["global_step"])
        except MergeError as error:
            raise self.damaged(self.checkpoint.name) from error

    def _scores(self) -> Scores | None:
        found = self.read("scores.json")
        if found is None:
            return None
        return {state: {task: TaskScore(**row) for task, row in rows.items()} for state, rows in found.items()}


Unfinished = UnfinishedFit
"""The name that it had in `lit_merge.unfinished`."""
