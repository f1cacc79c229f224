"""The coefficients of a merge as a heat map of task × layer."""

import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Colormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints.locations import resolve
from lit_merge.experts.matrices import block_of
from lit_merge.report.report import describe
from lit_merge.report.weight_order import display_order

# Inches: a column takes a label of 6.5 points, a row one of 8.
COLUMN, ROW = 0.135, 0.24
LETTER = 0.052
# Columns in a line; more layers go on in a line below.
LINE = 110
LONGEST = 30
BAD = "black"


# A name may have dollars in it.
@rc_context({"text.parse_math": False})
def coefficient_figure(
    bank: TaskBank | str | Path, start: Float[Tensor, "rows L"] | None = None, note: str = ""
) -> Figure:
    """λ[task, weight] of a bank: tasks down, weights across, grouped by block. Where directions have coefficients of
    their own, their means, and below them their standard deviations.

    Args:
        bank: whose coefficients are drawn; or its folder, or that of a run.
        start: those that a fit started from. Where they are one number and the coefficients lie on both sides of it,
            it is white and colours diverge from it; otherwise they go from the lowest coefficient to the highest.
        note: put before the mean and the range below the title, for example the step.

    Raises:
        MergeError: a folder without a bank.
    """
    if not isinstance(bank, TaskBank):
        folder = resolve(str(bank))
        bank = TaskBank.load(folder / "bank" if (folder / "bank" / "bank.json").is_file() else folder)
    values = bank.coefficients.detach().float().cpu().numpy()
    norm, colours = _scale(values, start)
    maps = [(values, norm, colours, "coefficient λ\n(factor on the delta)")]
    if bank.directions:
        deviation = _deviation(bank)
        norm = Normalize(0, max(float(deviation.max()), 1e-6))
        maps.append((deviation, norm, colormaps["magma"].with_extremes(bad=BAD), "standard deviation\nover directions"))
    order = display_order(bank.layers)
    lines = _lines([bank.layers[i] for i in order])
    widest = max(map(len, lines))
    labels = max(len(_label(name)) for line in lines for name in line) * LETTER
    width = max(7.0, COLUMN * widest + LETTER * 1.3 * max(map(len, bank.tasks)) + 1.6)
    message = (describe(bank), _summary(values, start, note))
    title = "\n".join(textwrap.fill(part, int(13 * width)) for part in message)
    heights = len(maps) * len(lines) * (ROW * len(values) + labels + 0.45)
    figure = Figure(figsize=(width, heights + 0.5 + 0.2 * (len(title.splitlines()) - 1)), layout="constrained")
    panels = figure.subplots(len(maps) * len(lines), 1, squeeze=False)[:, 0].reshape(len(maps), len(lines))
    for own, (shown, norm, colours, label) in zip(panels, maps, strict=True):
        done = 0
        for axes, line in zip(own, lines, strict=True):
            part = shown[:, order[done : done + len(line)]]
            image = axes.imshow(part, cmap=colours, norm=norm, aspect="auto")
            axes.set_xlim(-0.5, widest - 0.5)
            _label_axes(axes, line, ["all tasks"] if bank.shared else bank.tasks)
            done += len(line)
        bar = figure.colorbar(image, ax=list(own), pad=0.01, aspect=30)
        bar.set_label(label, fontsize=8)
        bar.ax.ticklabel_format(useOffset=False)
        bar.ax.tick_params(labelsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    # The layout costs more than the drawing: once for all files.
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    return figure


def _deviation(bank: TaskBank) -> np.ndarray:
    """Standard deviation of λ over the directions of every task and weight; 0 where they share one."""
    found = np.zeros(tuple(bank.coefficients.shape), dtype=np.float32)
    directions = bank.directions
    for i, name in enumerate(bank.layers):
        if name in directions:
            found[:, i] = directions[name].detach().float().std(1, correction=0).cpu().numpy()
    return found


def _lines(layers: Sequence[str]) -> list[list[str]]:
    """The layers in lines of about equal length, broken between blocks where that is possible."""
    goal = len(layers) / -(-len(layers) // LINE)
    lines: list[list[str]] = [[]]
    for _, names in groupby(layers, block_of):
        block = list(names)
        if lines[-1] and len(lines[-1]) + len(block) / 2 > goal:
            lines.append([])
        lines[-1] += block
        while len(lines[-1]) > 1.2 * LINE:
            lines[-1:] = [lines[-1][:LINE], lines[-1][LINE:]]
    return lines


def _label(name: str) -> str:
    return _shorten(name.removeprefix(block_of(name)), LONGEST)


def _shorten(text: str, letters: int) -> str:
    """Keeps the end, which tells names apart."""
    return text if len(text) <= letters else "…" + text[-letters + 1 :]


def _label_axes(axes: Axes, line: Sequence[str], rows: Sequence[str]) -> None:
    """Names of weights below, numbers of blocks above, tasks at the side; lines between blocks."""
    axes.set_xticks(range(len(line)), [_label(name) for name in line], rotation=90, fontsize=6.5)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    place = 0
    for block, names in groupby(line, block_of):
        count = len(list(names))
        if place:
            axes.axvline(place - 0.5, color="white", linewidth=2)
        if block:
            _write_above(axes, place + (count - 1) / 2, _stack_and_number(block)[1], 2, "center")
        place += count
    stacks = [_stack_and_number(block_of(name))[0] for name in line]
    _write_above(axes, -0.8, "block" if any(stacks) else "", 2, "right")
    if len(set(stacks) - {""}) > 1:
        for stack in dict.fromkeys(stacks):
            _write_above(axes, stacks.index(stack) - 0.5, _shorten(stack, 2 * stacks.count(stack)), 13, "left")


def _stack_and_number(block: str) -> tuple[str, str]:
    """`visual.transformer.resblocks.3.` → (`visual.transformer.resblocks`, `3`)."""
    stack, _, number = block.removesuffix(".").rpartition(".")
    return stack, number


def _write_above(axes: Axes, x: float, text: str, points: int, align: str) -> None:
    style: dict[str, Any] = {"ha": align, "va": "bottom", "fontsize": 8, "color": "#555555", "annotation_clip": False}
    axes.annotate(text, (x, -0.5), xytext=(0, points), textcoords="offset points", **style)


def _scale(values: np.ndarray, start: Tensor | None) -> tuple[Normalize, Colormap]:
    """White where nothing has changed, if that tells anything; else from the lowest to the highest."""
    low, high = _range(values)
    centre = _one_number(start)
    if centre is not None and low < centre < high:
        return CenteredNorm(centre, max(high - centre, centre - low)), colormaps["RdBu_r"].with_extremes(bad=BAD)
    if high - low < 1e-6 * max(abs(low), 1):
        low, high = low - 0.1, high + 0.1
    return Normalize(low, high), colormaps["viridis"].with_extremes(bad=BAD)


def _summary(values: np.ndarray, start: Tensor | None, note: str) -> str:
    low, high = _range(values)
    message = [f"all {low:.4g}"] if low == high else [f"mean {np.nanmean(values):.4g}", f"from {low:.4g} to {high:.4g}"]
    centre = _one_number(start)
    if centre is not None:
        message.append(f"started at {centre:.4g}")
    if bad := int((~np.isfinite(values)).sum()):
        message.append(f"{bad} not finite (black)")
    return (f"{note}: " if note else "") + ", ".join(message)


def _range(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def _one_number(start: Tensor | None) -> float | None:
    """The value that all of `start` has."""
    if start is None or start.numel() == 0 or (start != start.flatten()[0]).any():
        return None
    return start.flatten()[0].item()
