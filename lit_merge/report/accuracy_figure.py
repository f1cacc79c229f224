"""The accuracy of every task as a dumbbell chart."""

import textwrap
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from lit_merge.report.report import Report

COLOURS = {
    "pretrained": "#9aa0ab",
    "static": "#7fa8d9",
    "online": "#4f9d8f",
    "first": "#7a5fb5",
    "adapted": "#1f5fa8",
    "routed": "#c2577a",
    "expert": "#e0a03c",
}
# They tell the states apart in print, too.
MARKERS = {"pretrained": "o", "static": "s", "online": "v", "first": "P", "adapted": "D", "routed": "X", "expert": "^"}
# Letters of a task's name.
LONGEST = 36


# A name may have dollars in it.
@rc_context({"text.parse_math": False})
def accuracy_figure(run: Report | str | Path) -> Figure:
    """Accuracy per task and their mean: a row for each, a mark for every state that was measured.

    Args:
        run: a report, or the folder of a run, whose `metrics.json` is read.

    Raises:
        MergeError: a folder without results.
    """
    report = run if isinstance(run, Report) else Report.load(run)
    names = [*report.tasks, "mean"]
    # How often the right task was found is no accuracy.
    states = [state for state in report.states if state in COLOURS]
    rows = [*(report.row(task) for task in report.tasks), report.mean_row()]
    width = 8.0
    # About 13 letters of this size to the inch.
    title = textwrap.fill(report.method, int(13 * width))
    figure = Figure(figsize=(width, 0.26 * len(names) + 1.5 + 0.2 * len(title.splitlines())), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        known = [100 * value for state in states if (value := row[f"{state}_accuracy"]) is not None]
        axes.hlines(place, min(known), max(known), color="#c9ced6", linewidth=2.5, zorder=1)
    for state in states:
        shown = [(100 * value, i) for i, row in enumerate(rows) if (value := row[f"{state}_accuracy"]) is not None]
        x, y = [percent for percent, _ in shown], [place for _, place in shown]
        look: dict[str, Any] = {"color": COLOURS[state], "edgecolors": "white", "linewidths": 0.5, "zorder": 2}
        axes.scatter(x, y, 52, marker=MARKERS[state], label=report.label(state), **look)
    axes.axhline(len(names) - 1.5, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"accuracy on {report.split} data (%)")
    axes.set_xlim(0, 101)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=len(states), frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def shorten(name: str) -> str:
    """A task's name, cut where it is long."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
