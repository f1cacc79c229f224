"""Pictures of a sweep: a heat map of rank × scale for every method, and curves along the scale."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from lit_merge.choose.sweep.points import SELF_CONSISTENT, Point

CHOSEN = "#e0301e"
LABELS = {
    "accuracy": "validation accuracy (%)",
    "agreement": "agreement with the experts (%)",
    "entropy": "mean entropy (nats)",
}


def shown(point: Point, criterion: str) -> float:
    value = getattr(point, criterion)
    return float("nan") if value is None else value if criterion == "entropy" else 100 * value


def scale_figure(points: Sequence[Point], chosen: Point, criterion: str) -> Figure:
    """Rank × scale for every method, coloured by what the choice looked at; the chosen point is framed."""
    on_grid = [point for point in points if point.rule != SELF_CONSISTENT]
    methods = list(dict.fromkeys(point.method for point in on_grid))
    grids = {name: axes_of([p for p in on_grid if p.method == name]) for name in methods}
    heights = [len(ratios) + 1.6 for ratios, _ in grids.values()]
    width = max(6.0, 0.75 * max(len(scales) for _, scales in grids.values()) + 2.2)
    figure = Figure(figsize=(width, 0.42 * sum(heights) + 0.6), layout="constrained")
    panels = figure.subplots(len(methods), 1, squeeze=False, height_ratios=heights)[:, 0]
    values = [shown(point, criterion) for point in on_grid]
    low, high = np.nanmin(values), np.nanmax(values)
    image = None
    for axes, name in zip(panels, methods, strict=True):
        ratios, scales = grids[name]
        table = np.full((len(ratios), len(scales)), np.nan)
        for point in on_grid:
            if point.method == name:
                table[ratios.index(point.rank_ratio), scales.index(point.scaling)] = shown(point, criterion)
        colours = "viridis_r" if criterion == "entropy" else "viridis"
        image = axes.imshow(table, cmap=colours, vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            if not np.isnan(value):
                dark = (value - low) / max(high - low, 1e-9) < 0.6
                dark = not dark if criterion == "entropy" else dark
                text = f"{value:.2f}" if criterion == "entropy" else f"{value:.1f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        if chosen.method == name and chosen.scaling in scales:
            place = (scales.index(chosen.scaling) - 0.5, ratios.index(chosen.rank_ratio) - 0.5)
            axes.add_patch(_frame(place))
        axes.set_xticks(range(len(scales)), ["–" if s is None else f"{s:.3g}" for s in scales])
        axes.set_yticks(range(len(ratios)), ["own" if r is None else f"{r:g}" for r in ratios])
        axes.set_ylabel("rank ratio")
        axes.set_title(name, loc="left", fontsize=10)
    panels[-1].set_xlabel("scaling")
    assert image is not None
    figure.colorbar(image, ax=list(panels), label=LABELS[criterion], shrink=0.9)
    return figure


def curves_figure(points: Sequence[Point], chosen: Point) -> Figure:
    """What labels say (where there are some), what agreement and what entropy say, along the scale: a row for every
    method that has one, a line per rank, the chosen method first. The legend says what the marks are."""
    scaled = [point for point in points if point.scaling is not None]
    methods = sorted(dict.fromkeys(point.method for point in scaled), key=lambda name: name != chosen.method)
    criteria = [name for name in LABELS if any(getattr(point, name) is not None for point in scaled)]
    ratios = sorted({point.rank_ratio for point in scaled if point.rank_ratio is not None})
    colours = {None: "#444444"} | {ratio: f"C{i % 10}" for i, ratio in enumerate(ratios)}
    size = (4.1 * len(criteria), 2.9 * len(methods) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(methods), len(criteria), squeeze=False, sharey="col")
    for row, method in zip(grid, methods, strict=True):
        mine = [point for point in scaled if point.method == method]
        for axes, criterion in zip(row, criteria, strict=True):
            for ratio in dict.fromkeys(point.rank_ratio for point in mine):
                _draw_line(axes, [p for p in mine if p.rank_ratio == ratio], criterion, colours[ratio])
            if chosen in mine:
                axes.plot(chosen.scaling, shown(chosen, criterion), "*", color=CHOSEN, ms=11, mec="white", mew=0.6)
            axes.set_xscale("log")
            axes.set_xlabel(f"scaling of {method}")
            axes.set_ylabel(LABELS[criterion] if criterion != "agreement" else "agreement (%)")
            ticks = sorted({p.scaling for p in mine if p.rule != SELF_CONSISTENT and p.scaling})
            axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks], rotation=45)
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], color=colours[ratio], label=f"rank ratio {ratio:g}") for ratio in ratios]
    marks = [_mark("o", "best of its line"), _mark("*", "chosen", CHOSEN)]
    if any(point.rule == SELF_CONSISTENT for point in scaled):
        marks.append(_mark("x", "self-consistent scale"))
    figure.legend(handles=[*lines, *marks], loc="outside lower center", ncols=2 * len(criteria) + 1, frameon=False)
    return figure


def _draw_line(axes: Axes, points: Sequence[Point], criterion: str, colour: str) -> None:
    """One rank of one method along the scale."""
    line = sorted(points, key=lambda point: point.scaling or 0.0)
    grid = [point for point in line if point.rule != SELF_CONSISTENT]
    axes.plot([p.scaling or 0.0 for p in line], [shown(p, criterion) for p in line], color=colour, lw=1.3)
    if grid:
        best = (min if criterion == "entropy" else max)(grid, key=lambda p: shown(p, criterion))
        axes.plot(best.scaling or 0.0, shown(best, criterion), "o", color=colour, mfc="none", ms=8)
    for point in line:
        if point.rule == SELF_CONSISTENT:
            axes.plot(point.scaling or 0.0, shown(point, criterion), "x", color=colour)


def _mark(shape: str, label: str, colour: str = "#444444") -> Line2D:
    face = "none" if shape == "o" else colour
    return Line2D([], [], color=colour, marker=shape, mfc=face, ms=8, linestyle="none", label=label)


def axes_of(points: Sequence[Point]) -> tuple[list[float | None], list[float | None]]:
    """Sorted ranks and scales."""
    order = lambda value: -1.0 if value is None else value  # noqa: E731
    ratios = sorted({point.rank_ratio for point in points}, key=order)
    return ratios, sorted({point.scaling for point in points}, key=order)


def _frame(place: tuple[float, float]) -> Rectangle:
    return Rectangle(place, 1, 1, fill=False, edgecolor=CHOSEN, linewidth=2)
