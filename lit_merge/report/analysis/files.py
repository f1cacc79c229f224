"""An analysis as a folder: CSV, JSON and figures."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from lit_merge.checkpoints import replacing
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.kinds import Kind
from lit_merge.report.analysis.build import Analysis
from lit_merge.report.analysis.figures import cosines_figure, energy_figure, interference_figure, spectra_figure
from lit_merge.report.figure_files import FORMATS, save_both

FIGURES = {
    "interference": interference_figure,
    "energy": energy_figure,
    "spectra": spectra_figure,
    "cosines": cosines_figure,
}


def _is_analysis(folder: Path) -> bool:
    return {"tasks", "normalise", "anchors"} <= parse_json((folder / "summary.json").read_bytes()).keys()


ANALYSIS = Kind(
    "analyze",
    _is_analysis,
    rf"(curves|spectra|cosines)\.csv|summary\.json|({'|'.join(FIGURES)})\.({'|'.join(FORMATS)})",
)


def write_analysis(analysis: Analysis, path: str | Path, overwrite: bool = False) -> None:
    """Writes the folder `path`, whole or not at all: curves.csv, spectra.csv, cosines.csv, summary.json, figures.

    Raises:
        MergeError: the folder exists and `overwrite` is off, or cannot be written.
    """
    with replacing(path, overwrite, ANALYSIS) as folder:
        folder.mkdir()
        _write_csv(folder / "curves.csv", _CURVES, curve_rows(analysis))
        _write_csv(folder / "spectra.csv", ("anchor", "task", "weight", "index", "value"), spectrum_rows(analysis))
        _write_csv(folder / "cosines.csv", ("anchor", "task_i", "task_j", "cosine"), cosine_rows(analysis))
        text = json.dumps(summary(analysis), indent=1, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        for name, draw in FIGURES.items():
            # A name may have dollars in it.
            with mpl.rc_context({"text.parse_math": False}):
                figure = draw(analysis)
            save_both(figure, folder, name)


_CURVES = ("anchor", "weight", "ratio", "k", "interference", "reconstruction_error", "kept_energy")


def curve_rows(analysis: Analysis) -> Iterator[Sequence[Any]]:
    """I(k), R(k) and the kept share of the energy, for every anchor, matrix and ratio."""
    for anchor in analysis.anchors:
        for name, curves in analysis.curves[anchor].items():
            for ratio in analysis.ratios:
                k = analysis.rank(name, ratio)
                values = (curves.interference, curves.error, curves.kept)
                yield anchor, name, ratio, k, *(_number(value[k - 1].item()) for value in values)


def spectrum_rows(analysis: Analysis) -> Iterator[Sequence[Any]]:
    """Every singular value; indices count from 1."""
    for anchor in analysis.anchors:
        for name, curves in analysis.curves[anchor].items():
            for task, values in zip(analysis.tasks, curves.S.tolist(), strict=True):
                for index, value in enumerate(values, 1):
                    yield anchor, task, name, index, _number(value)


def cosine_rows(analysis: Analysis) -> Iterator[Sequence[Any]]:
    """Every pair of tasks, in both orders and with itself."""
    for anchor in analysis.anchors:
        values = analysis.cosines(anchor).tolist()
        for (i, one), (j, other) in itertools.product(enumerate(analysis.tasks), repeat=2):
            yield anchor, one, other, _number(values[i][j])


def summary(analysis: Analysis) -> dict[str, Any]:
    """Aggregates over matrices; what each is, is said in docs/analyze.md."""
    anchors: dict[str, Any] = {}
    for anchor in analysis.anchors:
        shares = analysis.rank_ratios_keeping(anchor)
        anchors[anchor] = {
            "squared_norm": analysis.energy(anchor),
            "mean_absolute_cosine": analysis.mean_absolute_cosine(anchor),
            "rank_keeping_90_percent": {
                "mean": sum(shares) / len(shares) if shares else None,
                "lowest": min(shares, default=None),
                "highest": max(shares, default=None),
            },
            "curves": [_aggregate(analysis, anchor, ratio) for ratio in analysis.ratios],
            "kinds": {
                kind: [_aggregate(analysis, anchor, ratio, names) for ratio in analysis.ratios]
                for kind, names in analysis.kinds.items()
            },
        }
    return {
        "tasks": analysis.tasks,
        "normalise": analysis.normalise,
        "notes": analysis.notes,
        "matrices": analysis.shapes,
        "unchanged": analysis.unchanged,
        "kinds": analysis.kinds,
        "anchors": anchors,
    }


def _aggregate(analysis: Analysis, anchor: Any, ratio: float, names: Sequence[str] | None = None) -> dict[str, float]:
    loss = analysis.loss(anchor, ratio, names)
    interference = analysis.interference(anchor, ratio, names)
    return {"ratio": ratio, "interference": interference, "relative_error": loss, "kept_energy": 1 - loss}


def _number(value: float) -> str:
    return f"{value:.8g}"


def _write_csv(path: Path, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heading)
        writer.writerows(rows)
