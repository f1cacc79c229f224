"""Pictures of an analysis. Each function draws one figure and returns it."""

import textwrap
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lit_merge.report.analysis.build import Analysis, Anchor
from lit_merge.report.analysis.curves import normalised

# Blue and amber as in other figures; markers tell the two apart in print.
COLOURS: dict[Anchor, str] = {"centred": "#1f5fa8", "pretrained": "#d08a1e", "bank": "#1f5fa8"}
MARKERS: dict[Anchor, str] = {"centred": "o", "pretrained": "s", "bank": "o"}
# Where the two lie on each other, both are seen.
WIDTHS: dict[Anchor, float] = {"centred": 2.6, "pretrained": 1.3, "bank": 1.6}
LABELS: dict[Anchor, str] = {
    "centred": "centred: expert − mean of the experts",
    "pretrained": "pretrained-anchored: expert − pretrained",
    "bank": "in the bank: what is added to the origin",
}
DIVISORS = {"whole": "the whole spectrum", "top": "the top k"}
RANK = "rank k / min(m, n)  (%)"
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
BAND = (10, 90)
# Inches of a panel, and the letters of a title that it has room for.
PANEL, LETTERS = 2.9, 36
# Beyond this many tasks numbers would not fit into the cells of a heat map.
NUMBERED = 10


def interference_figure(analysis: Analysis) -> Figure:
    """The central figure: I(k), mean over matrices, and R(k) of all matrices together, against the rank."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = _ranks(analysis, analysis.shapes)
    for anchor in analysis.anchors:
        _line(left, x, [analysis.interference(anchor, ratio) for ratio in analysis.ratios], anchor)
        _line(right, x, [100 * analysis.loss(anchor, ratio) for ratio in analysis.ratios], anchor)
    left.set_title("Row-space interference, mean over matrices", loc="left", fontsize=10)
    left.set_ylabel(f"I(k)\nσ divided by the sum of {DIVISORS[analysis.normalise]}", fontsize=9)
    if analysis.normalise == "top" and any(analysis.interference(a, analysis.ratios[0]) for a in analysis.anchors):
        left.set_yscale("log")
        left.yaxis.set_major_formatter(PLAIN)
    else:
        left.set_ylim(bottom=0)
    right.set_title("Reconstruction error, all matrices together", loc="left", fontsize=10)
    right.set_ylabel("R(k)\n% of the squared norm of the task vectors", fontsize=9)
    right.set_ylim(0, 100)
    for axes in (left, right):
        _rank_axis(axes, x)
        axes.set_xlabel(RANK)
    norms = ", ".join(f"{_short(anchor)} {analysis.energy(anchor):.4g}" for anchor in analysis.anchors)
    _finish(figure, analysis, f"Squared norm of all task vectors: {norms}.")
    return figure


def energy_figure(analysis: Analysis) -> Figure:
    """Kept energy against the rank, a panel per kind of layer."""

    def draw(axes: Axes, names: Sequence[str]) -> None:
        x = _ranks(analysis, names)
        for anchor in analysis.anchors:
            if not analysis.moved(anchor, names):
                continue
            _line(axes, x, [100 - 100 * analysis.loss(anchor, ratio, names) for ratio in analysis.ratios], anchor)
            kept = [[100 - 100 * loss for loss in analysis.losses(anchor, ratio, names)] for ratio in analysis.ratios]
            low, high = [min(values) for values in kept], [max(values) for values in kept]
            axes.fill_between(x, low, high, color=COLOURS[anchor], alpha=0.13, linewidth=0)
        axes.axhline(90, color="#888888", linewidth=0.8, linestyle=":")
        axes.set_ylim(0, 102)
        _rank_axis(axes, _ranks(analysis, analysis.shapes))

    figure = _panels(analysis, draw, RANK, "kept energy  (%)")
    note = "Dotted: 90 %. Band: from the lowest to the highest matrix."
    _finish(figure, analysis, note + _left_out(analysis))
    return figure


def spectra_figure(analysis: Analysis) -> Figure:
    """Singular values over their sum, a panel per kind of layer: mean over tasks and matrices, and their spread."""
    grid = np.linspace(0, 1, 201)[1:]

    def draw(axes: Axes, names: Sequence[str]) -> None:
        for anchor in analysis.anchors:
            spectra = []
            for name in analysis.moved(anchor, names):
                S = analysis.curves[anchor][name].S
                places = np.arange(1, S.shape[1] + 1) / S.shape[1]
                spectra += [np.interp(grid, places, row) for row in normalised(S[S[:, 0] > 0]).numpy()]
            if not spectra:
                continue
            stack = 100 * np.stack(spectra)
            axes.plot(100 * grid, stack.mean(0), color=COLOURS[anchor], label=LABELS[anchor], linewidth=WIDTHS[anchor])
            low, high = np.percentile(stack, BAND, axis=0)
            axes.fill_between(100 * grid, low, high, color=COLOURS[anchor], alpha=0.15, linewidth=0)
        axes.set_yscale("log")
        axes.set_xlim(0, 100)

    figure = _panels(analysis, draw, "index i / min(m, n)  (%)", "σᵢ / sum of all σ  (%)")
    tops = [np.max(line.get_ydata()) for axes in figure.axes for line in axes.get_lines()]
    if tops:
        # Far below is rounding only: of a task vector that lacks full rank, for example.
        first = figure.axes[0]
        first.set_ylim(max(first.get_ylim()[0], 1e-4 * max(tops)), 1.6 * max(tops))
        first.yaxis.set_major_formatter(PLAIN)
    note = f"Mean over tasks and matrices; band: {BAND[0]}th to {BAND[1]}th percentile."
    _finish(figure, analysis, note + _left_out(analysis))
    return figure


def cosines_figure(analysis: Analysis) -> Figure:
    """Cosines between whole task vectors, one heat map per anchor on one scale; the diagonal, always 1, is left out."""
    tasks, anchors = analysis.tasks, analysis.anchors
    numbered = len(tasks) <= NUMBERED
    side = max(3.4, (0.56 if numbered else 0.3) * len(tasks) + 1)
    figure = Figure(figsize=(side * len(anchors) + 1.4, side + 0.8), layout="constrained")
    maps = {anchor: np.where(np.eye(len(tasks)), np.nan, analysis.cosines(anchor).numpy()) for anchor in anchors}
    reach = max((np.abs(value[~np.isnan(value)]).max(initial=0) for value in maps.values()), default=0) or 1.0
    for i, (axes, anchor) in enumerate(zip(figure.subplots(1, len(anchors), squeeze=False)[0], anchors, strict=True)):
        image = axes.imshow(maps[anchor], cmap="RdBu_r", vmin=-reach, vmax=reach)
        axes.set_facecolor("#e8e8e8")
        axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(tasks)), tasks if i == 0 else [])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        mean = analysis.mean_absolute_cosine(anchor)
        message = "" if mean is None else f"mean |cosine| {mean:.3f}"
        axes.set_title(f"{_short(anchor)}\n{message}", loc="left", fontsize=10)
        for row, column in np.argwhere(~np.isnan(maps[anchor])) if numbered else ():
            value = maps[anchor][row, column]
            colour = "white" if abs(value) > 0.6 * reach else "black"
            number = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
            axes.text(column, row, number, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=figure.axes, label="cosine between task vectors", shrink=0.8)
    _head(figure, analysis)
    return figure


def _line(axes: Axes, x: list[float], y: list[float], anchor: Anchor) -> None:
    style: dict[str, Any] = {"color": COLOURS[anchor], "linewidth": WIDTHS[anchor], "label": LABELS[anchor]}
    axes.plot(x, y, marker=MARKERS[anchor], markersize=2 * WIDTHS[anchor], **style)


def _short(anchor: Anchor) -> str:
    return LABELS[anchor].partition(":")[0]


def _ranks(analysis: Analysis, names: Collection[str]) -> list[float]:
    """k / min(m, n) in per cent for every ratio, as whole ranks allow; the mean over these matrices."""
    sides = [min(analysis.shapes[name]) for name in names]
    return [
        100 * sum(analysis.rank(name, ratio) / side for name, side in zip(names, sides, strict=True)) / len(sides)
        for ratio in analysis.ratios
    ]


def _rank_axis(axes: Axes, x: Sequence[float]) -> None:
    """Ranks on a logarithmic axis: what matters happens at the small ones."""
    axes.set_xscale("log")
    ticks: list[float] = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    if not any(x[0] <= tick <= x[-1] for tick in ticks):
        ticks = [x[0]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PLAIN)
    _plain_frame(axes)


def _plain_frame(axes: Axes) -> None:
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _panels(analysis: Analysis, draw: Callable[[Axes, Sequence[str]], None], x: str, y: str) -> Figure:
    """One small panel per kind of layer in which experts differ, up to four in a row, on common axes."""
    moved = {kind: names for kind, names in analysis.kinds.items() if _moves(analysis, names)}
    kinds = list((moved or analysis.kinds).items())
    columns = min(4, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(max(6.5, PANEL * columns), 2.75 * rows + 1.3), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(kinds) :]:
        axes.remove()
    for i, (axes, (kind, names)) in enumerate(zip(grid.flat, kinds, strict=False)):
        draw(axes, names)
        if not moved:
            axes.text(0.5, 0.5, "no difference", ha="center", va="center", transform=axes.transAxes, fontsize=9)
        _plain_frame(axes)
        axes.set_title(_panel_title(kind, len(names)), loc="left", fontsize=9)
        if i + columns >= len(kinds):
            axes.set_xlabel(x, fontsize=9)
            axes.tick_params(labelbottom=True)
    figure.supylabel(y, fontsize=10)
    return figure


def _moves(analysis: Analysis, names: Collection[str]) -> bool:
    return any(analysis.moved(anchor, names) for anchor in analysis.anchors)


def _panel_title(kind: str, count: int) -> str:
    """The kind and the number of its matrices; what comes before the block's number stands in a line of its own. The
    beginning of a line that is wider than its panel is left out."""
    stack, _, own = kind.rpartition("*.")
    lines = [stack.removesuffix("."), f"{own}  (×{count})" if count > 1 else own]
    return "\n".join(line if len(line) <= LETTERS else "…" + line[1 - LETTERS :] for line in lines if line)


def _finish(figure: Figure, analysis: Analysis, note: str) -> None:
    """Legend and note below, what was analysed above."""
    drawn = [axes.get_legend_handles_labels() for axes in figure.axes]
    lines = {label: handle for handles, labels in drawn for handle, label in zip(handles, labels, strict=True)}
    figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        title=textwrap.fill(note, int(15 * figure.get_figwidth())),
        title_fontsize=8,
    )
    _head(figure, analysis)


def _left_out(analysis: Analysis) -> str:
    """Kinds of layers without a panel of their own."""
    still = [kind for kind, names in analysis.kinds.items() if not _moves(analysis, names)]
    if not still or len(still) == len(analysis.kinds):
        return ""
    return f" Not drawn, since no expert differs in them: {', '.join(still)}."


def _head(figure: Figure, analysis: Analysis) -> None:
    text = "; ".join([analysis.size, *analysis.notes])
    wrapped = textwrap.fill(text, int(13 * figure.get_figwidth()))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=9, color="#555555")
