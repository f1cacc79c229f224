"""What happened during a fit: objective, guard and coefficients along the steps."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lit_merge.report.accuracy_figure import shorten
from lit_merge.report.run_folder import RunFolder
from lit_merge.report.training_curves import Curve, training_curves

MEAN = "#222222"


# A name may have dollars in it.
@rc_context({"text.parse_math": False})
def training_figure(run: RunFolder | str | Path) -> Figure:
    """Curves of a run of fit along its steps, a line per task and their mean: the objective on the batches, what the
    guard saw of its own inputs (entropy, agreement with the experts, balance), and the mean coefficient.

    Args:
        run: the folder, of which the log and `guard.csv` are read.

    Raises:
        MergeError: no run, or a file in it that is damaged.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    panels = {title: curves for title, curves in training_curves(folder).items() if any(curves.values())}
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    tasks = list(dict.fromkeys(task for curves in panels.values() for task in curves))
    legend = 0.2 * -(-len(tasks) // (2 * columns)) + 0.5
    figure = Figure(figsize=(3.9 * columns, 2.9 * rows + legend), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    colours = {task: f"C{i % 10}" for i, task in enumerate(tasks)}
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        _draw(axes, title, curves, colours, folder)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    shown = {str(label): line for label, line in handles.items() if not str(label).startswith("_")}
    names = [shorten(name) for name in shown]
    figure.legend(list(shown.values()), names, loc="outside lower center", ncols=2 * columns, frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, title: str, curves: Mapping[str, Curve], colours: Mapping[str, str], folder: RunFolder) -> None:
    for task, curve in curves.items():
        colour, width = (MEAN, 2.2) if task == "mean" else (colours[task], 0.9)
        # More than ten tasks share colours: the second ten are dashed.
        dashed = task != "mean" and list(colours).index(task) > 10
        x, y = [step for step, _ in curve], [value for _, value in curve]
        axes.plot(x, y, label=task, ls="--" if dashed else "-", color=colour, linewidth=width)
    if folder.report is not None and folder.report.kept:
        axes.axvline(
            folder.report.kept["step"], color="#e0301e", linewidth=1, linestyle=":", label="step that was kept"
        )
    axes.set_title("\n".join(textwrap.wrap(title, 46)), loc="left", fontsize=9)
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
