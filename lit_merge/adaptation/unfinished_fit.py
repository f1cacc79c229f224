"""The state of a fit that is not finished: the same command goes on from there."""

import csv
import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_merge.adaptation.training_checkpoint import read_training_checkpoint
from lit_merge.checkpoints import replacing
from lit_merge.checkpoints.json_text import parse_sealed
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.unfinished import UnfinishedOutput
from lit_merge.errors import MergeError
from lit_merge.report.scores import TaskScore

Scores = dict[str, Mapping[str, TaskScore]]
OUTPUTS = "outputs.json"


class UnfinishedFit(UnfinishedOutput):
    """`runs/.x.unfinished` of the run `runs/x`: plan.json, scores.json (of what the merge is measured against),
    step.ckpt, outputs.json (what the fit has put elsewhere), teachers.safetensors (what experts predict), and what
    grows in every attempt: log/, by the step at which it began, coefficients/ and inside/, the loggers whose place is
    in the run's folder.

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
        self.coefficients, self.inside = self.folder / "coefficients", self.folder / "inside"
        try:
            goes_on = self.goes_on_now = self.goes_on(plan, overwrite)
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
                if int(place.stem) >= (self.step or 0):
                    place.unlink()
            for place in (self.coefficients, self.inside) if self.step is None else ():
                shutil.rmtree(place, ignore_errors=True)

    @property
    def log(self) -> Path:
        """Where this attempt logs, as `whole_log` reads it."""
        return self.folder / "log" / f"{self.step or 0}.jsonl"

    def outlives(self, error: BaseException | None) -> bool:
        return error is not None and (self.checkpoint.exists() or (self.folder / OUTPUTS).exists())

    def fate(self) -> str:
        """What becomes of the run when the fit ends now, to follow a line that says why it ends."""
        goes_on = f"; the same command goes on ({self.folder})" if self.checkpoint.exists() else ""
        return f": {self.output} was not written{goes_on}"

    def owns(self, path: str | Path) -> bool:
        """Whether an attempt of this fit has put there what stands there."""
        target = destination(path)
        noted = (self.read(OUTPUTS) or {}).get(str(target.absolute()))
        return noted is not None and target.exists() and noted == _identity(target)

    @contextmanager
    def putting(self, path: str | Path, overwrite: bool = False, kind: Kind | None = None) -> Iterator[Path]:
        """Writes an output of the fit outside of its folder, whole or not at all, and notes whose it is: when the fit
        goes on after a kill, it replaces what it has put there itself.

        Raises:
            MergeError: what `replacing` raises.
        """
        target = destination(path)
        with replacing(target, overwrite or self.owns(target), kind) as new:
            yield new
            noted = (self.read(OUTPUTS) or {}) | {str(target.absolute()): _identity(new)}
            self.write(OUTPUTS, noted)

    def write_scores(self, scores: Scores) -> None:
        """Remembers what is measured before the fit."""
        rows = {state: {task: one.as_dict() for task, one in by_task.items()} for state, by_task in scores.items()}
        if self.first:
            self.write("scores.json", rows)

    def whole_log(self) -> str:
        """The training log of all attempts as CSV, every step as the last one that came to it has logged it."""
        rows: dict[int, list[dict[str, Any]]] = {}
        for attempt in self._attempts():
            mine: dict[int, list[dict[str, Any]]] = {}
            for row in self._lines(attempt):
                mine.setdefault(row["step"], []).append(row)
            rows |= mine
        whole = [row for step in sorted(rows) for row in rows[step]]
        joined = io.StringIO()
        writer = csv.DictWriter(joined, sorted(set().union(*whole)), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(whole)
        return joined.getvalue()

    def _lines(self, attempt: Path) -> Iterator[dict[str, Any]]:
        """What an attempt has logged; a machine without power may have cut its last line short."""
        *lines, _ = attempt.read_bytes().split(b"\n")
        try:
            yield from (parse_sealed(line) for line in lines)
        except ValueError as error:
            raise self.damaged(f"log/{attempt.name}") from error

    def _attempts(self) -> list[Path]:
        # Lightning keeps checkpoints next to a log that is not named a place.
        found = (self.folder / "log").iterdir() if (self.folder / "log").is_dir() else ()
        places = [place for place in found if not place.is_dir()]
        if other := [place.name for place in places if not place.stem.isdecimal()]:
            raise self.damaged(f"log/{other[0]}")
        return sorted(places, key=lambda place: int(place.stem))

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


def _identity(path: Path) -> list[int]:
    """What a file or folder keeps when it is renamed, and no other one has."""
    found = path.stat()
    return [found.st_ino, found.st_mtime_ns]


Unfinished = UnfinishedFit
"""The name that it had in `lit_merge.unfinished`."""
