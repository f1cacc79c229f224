"""Pictures of results. Each function draws one figure and returns it."""

import textwrap
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from lit_merge.checkpoints import replacing
from lit_merge.report.report import Report

COLOURS = {"pretrained": "#b8bcc4", "static": "#7fa8d9", "online": "#4f9d8f", "adapted": "#1f5fa8", "expert": "#e0a03c"}


# A name may have dollars in it.
@rc_context({"text.parse_math": False})
def accuracy_figure(report: Report) -> Figure:
    """Accuracy per task and their mean, one bar for every state that was measured."""
    names = [*report.tasks, "mean"]
    rows = [*(report.row(task) for task in report.tasks), report.mean_row()]
    width = 0.8 / len(report.states)
    inches = max(6.0, 1.05 * len(names) + 1.5)
    # About 13 letters of this size to the inch.
    title = textwrap.fill(report.method, int(13 * inches))
    figure = Figure(figsize=(inches, 3.8 + 0.2 * len(title.splitlines())), layout="constrained")
    axes = figure.subplots()
    for i, state in enumerate(report.states):
        heights = [100 * (row[f"{state}_accuracy"] or 0) for row in rows]
        places = [x + (i - (len(report.states) - 1) / 2) * width for x in range(len(names))]
        axes.bar(places, heights, width * 0.92, label=state, color=COLOURS[state])
    axes.axvline(len(names) - 1.5, color="#888888", linewidth=0.8, linestyle=":")
    rotation, side = (30, "right") if len(names) > 6 else (0, "center")
    axes.set_xticks(range(len(names)), names, rotation=rotation, ha=side)
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(0, 100)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(report.states), frameon=False)
    return figure


def save_figure(figure: Figure, path: str | Path, overwrite: bool = False) -> None:
    """Writes a figure, whole or not at all; the suffix chooses PNG, SVG or PDF. Equal figures give equal files."""
    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(Path(path).suffix, {})
    # Labels of axes are made when they are drawn. Names in an SVG are random without a salt.
    with replacing(path, overwrite) as draft, rc_context({"text.parse_math": False, "svg.hashsalt": "lit_merge"}):
        figure.savefig(draft, dpi=150, metadata=dates)
