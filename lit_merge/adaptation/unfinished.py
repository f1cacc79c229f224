"""The state of a run that is not finished, in a hidden folder beside it: the same command goes on from there."""

import csv
import io
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lit_merge.checkpoints import write_text
from lit_merge.checkpoints.locks import lock, unlock
from lit_merge.errors import MergeError
from lit_merge.report.scores import TaskScore

Scores = dict[str, Mapping[str, TaskScore]]


class Unfinished:
    """`runs/.x.unfinished` of the run `runs/x`: plan.json (what makes two fits the same), scores.json (of what the
    merge is measured against), step.ckpt, and log/, the training log of every attempt by the step at which it began.

    As a context it is removed when the run is whole, or fails without a checkpoint; a kill leaves it.

    Args:
        run: the folder of the run.
        plan: what makes two fits the same, by names for people.
        overwrite: start afresh where the folder is of another fit.
        writes: off for all processes of a run but the first: they only read.

    Raises:
        MergeError: the folder is of another fit and `overwrite` is off; it is damaged, or cannot be written; another
            process is at work on the same run.
    """

    def __init__(self, run: Path, plan: Mapping[str, Any], overwrite: bool = False, writes: bool = True) -> None:
        self.run, self.writes = run, writes
        self.folder = run.parent / f".{run.name}.unfinished"
        self.checkpoint = self.folder / "step.ckpt"
        self._lock = self._take() if writes else None
        try:
            plan = json.loads(json.dumps(plan, default=str))
            found = self._read("plan.json")
            if found is None and self.checkpoint.exists():
                raise MergeError(f"{self.folder} is damaged: it has no plan.json: remove it")
            differs = [name for name in plan if (found or plan).get(name) != plan[name]]
            if differs and not overwrite:
                raise MergeError(
                    f"{self.folder} holds an unfinished fit with other {', '.join(differs)}: pass --overwrite to start "
                    "afresh, or choose another --run"
                )
            fresh = found is None or bool(differs)
            if fresh and writes:
                self._empty()
                write_text(self.folder / "plan.json", json.dumps(plan, indent=1) + "\n")
            self.step = None if fresh else self._step()
            self.scores = None if fresh else self._scores()
        except BaseException:
            unlock(self._lock)
            raise
        if writes:
            # Of an attempt that got further than its last checkpoint.
            for place in self._attempts():
                if int(place.name) >= (self.step or 0):
                    shutil.rmtree(place)
            if self.step is None:
                shutil.rmtree(self.folder / "coefficients", ignore_errors=True)

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.writes and (kind is None or not self.checkpoint.exists()):
            shutil.rmtree(self.folder, ignore_errors=True)
        unlock(self._lock)

    def keep_scores(self, scores: Scores) -> None:
        """Remembers what is measured before the fit."""
        rows = {state: {task: one.as_dict() for task, one in by_task.items()} for state, by_task in scores.items()}
        if self.writes:
            write_text(self.folder / "scores.json", json.dumps(rows) + "\n", overwrite=True)

    def whole_log(self) -> str:
        """The training log of all attempts as CSV, every step once."""
        attempts = self._attempts()
        rows: list[dict[str, str]] = []
        for place, following in zip(attempts, [*attempts[1:], None], strict=True):
            text = (place / "metrics.csv").read_text(encoding="utf-8") if (place / "metrics.csv").exists() else ""
            ends = None if following is None else int(following.name)
            rows += [row for row in csv.DictReader(io.StringIO(text)) if ends is None or int(row["step"]) < ends]
        columns = sorted(set().union(*rows))
        joined = io.StringIO()
        writer = csv.DictWriter(joined, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return joined.getvalue()

    def _take(self) -> int | None:
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                return lock(self.folder)
            except BlockingIOError as error:
                raise MergeError(f"another process is at work on {self.run}: wait, or choose another --run") from error
            except FileNotFoundError:
                continue  # that process has just finished
            except OSError as error:
                raise MergeError(f"{self.folder} cannot be written: {error.strerror}") from error

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _attempts(self) -> list[Path]:
        places = (self.folder / "log").iterdir() if (self.folder / "log").is_dir() else ()
        return sorted(places, key=lambda place: int(place.name))

    def _step(self) -> int | None:
        if not self.checkpoint.exists():
            return None
        try:
            return int(torch.load(self.checkpoint, map_location="cpu", weights_only=True)["global_step"])
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise MergeError(f"{self.checkpoint} is damaged: remove {self.folder} to start afresh") from error

    def _scores(self) -> Scores | None:
        found = self._read("scores.json")
        if found is None:
            return None
        return {state: {task: TaskScore(**row) for task, row in rows.items()} for state, rows in found.items()}

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.folder / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise MergeError(f"{self.folder / name} is damaged: remove {self.folder} to start afresh") from error
