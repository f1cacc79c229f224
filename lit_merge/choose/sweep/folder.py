"""The folder of a sweep: filled point by point, so that the same command goes on where it was cut off."""

import csv
import io
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from lit_merge.checkpoints import check_output, write_text
from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.own import own
from lit_merge.checkpoints.unfinished import UnfinishedOutput
from lit_merge.choose.sweep.figures import curves_figure, scale_figure
from lit_merge.choose.sweep.points import CRITERION, Key, Point, Select
from lit_merge.choose.sweep.tables import tables
from lit_merge.console import terminal
from lit_merge.errors import MergeError
from lit_merge.methods import MergeMethod
from lit_merge.report.accuracy_figure import save_figure

# As far as they round.
SHARES = (-1e-3, 1 + 1e-3)
COLUMNS = [one.name for one in fields(Point)]


class SweepFolder(UnfinishedOutput):
    """`results.csv` grows with every point; table, figures and the chosen configuration are written at the end. A
    context, which one command at a time has.

    Args:
        path: the folder.
        plan: what makes two sweeps the same; kept as sweep.json.
        overwrite: start afresh where the folder holds another sweep.
        keys: of all points that the sweep may hold.

    Raises:
        MergeError: the folder holds something else, a point that is none of this sweep, or another sweep, and
            `overwrite` is off; it cannot be written; another command is at work on it.
    """

    hidden, plan_file, kind = False, "sweep.json", "a sweep"

    def __init__(
        self, path: str | Path, plan: Mapping[str, Any], overwrite: bool = False, keys: Set[Key] | None = None
    ) -> None:
        folder = check_output(path, overwrite or destination(path).is_dir())
        new = not folder.is_dir() or (overwrite and not any(folder.iterdir()))
        if not new and not (folder / self.plan_file).is_file():
            raise MergeError(f"{folder} exists and is no sweep: choose another place")
        super().__init__(path)
        try:
            if overwrite or not self.goes_on(plan):
                self.begin(plan)
                write_text(self.folder / "results.csv", to_csv([]), overwrite=True)
            self.points = {point.key: point for point in self._points()}
            if keys is not None and not self.points.keys() <= keys:
                raise self.damaged("results.csv")
        except BaseException:
            self.release()
            raise

    def add(self, point: Point) -> None:
        """Remembers a point, on disk too."""
        self.points[point.key] = point
        write_text(self.folder / "results.csv", to_csv(self.points.values()), overwrite=True)

    def finish(self, chosen: Point, method: MergeMethod, select: Select) -> None:
        """Writes the table, the figures, and `chosen.yaml`, which goes over the configuration of the sweep."""
        points = list(self.points.values())
        init_args = dict(method.describe()["init_args"]) | {"scaling": chosen.scaling}  # type: ignore[call-overload]
        if chosen.scaling is None:
            del init_args["scaling"]
        if chosen.rank_ratio is not None:
            init_args["rank_ratio"] = chosen.rank_ratio
        about = {"model": {"method": {"class_path": chosen.method, "init_args": init_args}}}
        write_text(self.folder / "chosen.yaml", yaml.safe_dump(about, sort_keys=False), overwrite=True)
        console = terminal(markup=True, file=io.StringIO(), width=110)
        console.print(tables(points, chosen, select))
        write_text(self.folder / "table.txt", console.file.getvalue(), overwrite=True)  # type: ignore[attr-defined]
        figures = {"heatmap": scale_figure(points, chosen, CRITERION[select])}
        if chosen.scaling is not None:
            figures["curves"] = curves_figure(points, chosen)
        for name, figure in figures.items():
            for suffix in ("png", "svg"):
                save_figure(figure, self.folder / f"{name}.{suffix}", overwrite=True)

    def _points(self) -> Iterable[Point]:
        try:
            with open(self.folder / "results.csv", encoding="utf-8", opener=own) as file:
                text = file.read()
            return [from_row(row) for row in csv.DictReader(io.StringIO(text))]
        except MergeError:
            raise
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise self.damaged("results.csv") from error


def to_csv(points: Iterable[Point]) -> str:
    """A line per point."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: "" if value is None else value for name, value in asdict(point).items()} for point in points
    )
    return text.getvalue()


def from_row(row: Mapping[str, str]) -> Point:
    number = {name: float(row[name]) if row[name] else None for name in COLUMNS if name not in ("method", "rule")}
    if None in (number["entropy"], number["agreement"], number["balance"]) or len(row) > len(COLUMNS):
        raise ValueError("a line without entropy, agreement or balance, or with more")
    if not all(SHARES[0] <= (number[name] or 0.0) <= SHARES[1] for name in ("accuracy", "agreement", "balance")):
        raise ValueError("a share that is none")
    if number["entropy"] < SHARES[0]:  # type: ignore[operator]
        raise ValueError("an entropy below 0")
    return Point(method=row["method"], rule=row["rule"], **number)  # type: ignore[arg-type]
