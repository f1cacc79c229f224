"""Draws the README's figure, docs/figures/quickstart.svg, from the table of the run that scripts/quickstart makes."""

import argparse
from pathlib import Path

from lit_merge.checkpoints.json_text import read_object
from lit_merge.report.accuracy_figure import accuracy_figure, save_figure
from lit_merge.report.report import STATES, Report
from lit_merge.report.scores import TaskScore

ROOT = Path(__file__).parents[1]


def read_report(path: Path) -> Report:
    """The report that `metrics.json` of a run holds."""
    found = read_object(path, "metrics")
    scores = {}
    for state in STATES:
        rows = {task: row for task, row in found["tasks"].items() if f"{state}_accuracy" in row}
        if rows:
            scores[state] = {
                task: TaskScore(row[f"{state}_accuracy"], row.get(f"{state}_entropy", 0.0), row["images"])
                for task, row in rows.items()
            }
    return Report(found["method"], found["protocol"], scores, found["bytes"], found["split"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="runs/quickstart")
    parser.add_argument("--output", default=ROOT / "docs" / "figures" / "quickstart.svg", type=Path)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_figure(accuracy_figure(read_report(Path(options.run) / "metrics.json")), options.output, overwrite=True)
    print(options.output)
