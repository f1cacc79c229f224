"""The folder of a sweep: filled point by point, so that the same command goes on where it was cut off."""

import csv
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from lit_merge.checkpoints import check_output, replacing, write_text
from lit_merge.checkpoints.json_text import parse_sealed, sealed
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import destination, resolve
from lit_merge.checkpoints.manifest import check_noted, write_manifest
from lit_merge.checkpoints.own import own
from lit_merge.checkpoints.unfinished import UnfinishedOutput, differing
from lit_merge.choose.sweep.figures import curves_figure, scale_figure
from lit_merge.choose.sweep.points import CRITERION, Key, Point, Select, choose
from lit_merge.choose.sweep.tables import tables
from lit_merge.console import terminal
from lit_merge.errors import MergeError
from lit_merge.methods import MergeMethod
from lit_merge.report.figure_files import save_both

# As far as they round.
SHARES = (-1e-3, 1 + 1e-3)
RESULTS = "results.csv"
# Of a sweep that is not finished: a line of JSON for every point.
POINTS = "points.jsonl"
PLAN = "sweep.json"
SWEEP = Kind(
    "sweep",
    lambda folder: (folder / PLAN).is_file(),
    r"(sweep|digests)\.json|results\.csv|table\.txt|chosen\.yaml|(heatmap|curves)\.(png|svg)",
)
COLUMNS = [one.name for one in fields(Point)]


class SweepFolder(UnfinishedOutput):
    """`.NAME.unfinished` of the sweep `NAME`: its plan, and `points.jsonl`, which grows with every point. The folder
    itself appears when the sweep is whole. A context, which one command at a time has.

    Args:
        path: the folder.
        plan: what makes two sweeps the same; kept as sweep.json.
        overwrite: start afresh where the folder holds a sweep.
        keys: of all points that the sweep may hold.

    Attributes:
        points: key → what is known already: of a sweep that was cut off, or, without `overwrite`, of the folder.

    Raises:
        MergeError: the folder holds something else, a point that is none of this sweep, or another sweep, and
            `overwrite` is off; it cannot be written; another command is at work on it.
    """

    plan_file, kind = PLAN, "a sweep"

    def __init__(
        self, path: str | Path, plan: Mapping[str, Any], overwrite: bool = False, keys: Set[Key] | None = None
    ) -> None:
        folder = destination(path)
        known = not overwrite and (folder / self.plan_file).is_file()
        if folder.is_dir() and (not overwrite or any(folder.iterdir())) and not (folder / self.plan_file).is_file():
            raise MergeError(f"{folder} exists and is no sweep: choose another place")
        check_output(path, overwrite or known, SWEEP)
        super().__init__(path)
        try:
            if known and (differs := differing(plan, _plan(folder / self.plan_file))):
                raise self.of_another(folder, differs)
            found = _points(folder / RESULTS, keys) if known else []
            if self.goes_on(plan, overwrite):
                found += self._found()
            else:
                self.begin(plan)
            self.points = {point.key: point for point in found}
        except BaseException:
            self.release()
            raise

    def outlives(self, error: BaseException | None) -> bool:
        return error is not None and (self.folder / POINTS).exists()

    def add(self, point: Point) -> None:
        """Remembers a point, on disk too."""
        self.points[point.key] = point
        lines = "".join(sealed(asdict(one)) + "\n" for one in self.points.values())
        write_text(self.folder / POINTS, lines, overwrite=True)

    def _found(self) -> list[Point]:
        try:
            with open(self.folder / POINTS, "rb", opener=own) as file:
                return [Point(**parse_sealed(line)) for line in file.read().splitlines()]
        except FileNotFoundError:
            return []
        except MergeError:
            raise
        except (OSError, ValueError, TypeError) as error:
            raise self.damaged(POINTS) from error

    def finish(self, chosen: Point, method: MergeMethod, select: Select) -> None:
        """Writes the folder: results, table, figures, and `chosen.yaml`, which goes over the configuration of the
        sweep."""
        points = list(self.points.values())
        init_args = dict(method.describe()["init_args"]) | {"scaling": chosen.scaling}  # type: ignore[call-overload]
        if chosen.scaling is None:
            del init_args["scaling"]
        if chosen.rank_ratio is not None:
            init_args["rank_ratio"] = chosen.rank_ratio
        about = {"model": {"method": {"class_path": chosen.method, "init_args": init_args}}}
        console = terminal(markup=True, file=io.StringIO(), width=110)
        console.print(tables(points, chosen, select))
        figures = draw(points, chosen, select)
        with replacing(self.output, overwrite=True, kind=SWEEP) as folder:
            folder.mkdir()
            shutil.copyfile(self.folder / self.plan_file, folder / self.plan_file)
            write_text(folder / RESULTS, to_csv(points))
            write_text(folder / "chosen.yaml", yaml.safe_dump(about, sort_keys=False))
            write_text(folder / "table.txt", console.file.getvalue())  # type: ignore[attr-defined]
            for name, figure in figures.items():
                save_both(figure, folder, name)
            write_manifest(folder, [*folder.glob("*.csv"), *folder.glob("*.yaml"), *folder.glob("*.txt")])
            self.placing(folder)


def sweep_figures(folder: str | Path, select: Select | None = None) -> dict[str, Figure]:
    """The figures of a sweep that is whole: `heatmap`, of rank and scale, and `curves`, along the scale.

    Args:
        folder: of the sweep; its `results.csv` is read.
        select: what a point is marked by, see `choose`; by default labels, where there are some, or else agreement.

    Raises:
        MergeError: no sweep, or a damaged one; nothing to choose from.
    """
    points = _points(resolve(str(folder)) / RESULTS, None)
    labelled = any(point.accuracy is not None for point in points)
    select = select or ("accuracy" if labelled else "agreement")
    return draw(points, choose(points, select), select)


def draw(points: Sequence[Point], chosen: Point, select: Select) -> dict[str, Figure]:
    """Name → figure."""
    figures = {"heatmap": scale_figure(points, chosen, CRITERION[select])}
    if any(point.scaling is not None for point in points):
        figures["curves"] = curves_figure(points, chosen)
    return figures


def _plan(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=own) as file:
            return parse_sealed(file.read())
    except MergeError:
        raise
    except (OSError, ValueError) as error:
        raise MergeError(f"{path} is damaged: pass --overwrite to start afresh") from error


def _points(path: Path, keys: Set[Key] | None) -> list[Point]:
    try:
        with open(path, "rb", opener=own) as file:
            content = file.read()
        check_noted(path.parent, path, content)
        found = [from_row(row) for row in csv.DictReader(io.StringIO(content.decode()))]
        if keys is not None and not {point.key for point in found} <= keys:
            raise ValueError("a point that is none of the sweep's")
        return found
    except MergeError:
        raise
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise MergeError(f"{path} is damaged: pass --overwrite to start afresh") from error


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
