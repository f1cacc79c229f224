"""A sweep in a terminal: one table per method."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lit_merge.choose.sweep.points import CRITERION, SELF_CONSISTENT, Point, Select
from lit_merge.console import table


def tables(points: Sequence[Point], chosen: Point | None, select: Select) -> Group:
    """A table per method: ranks down, scales across, what the choice looks at in the cells."""
    criterion = CRITERION[select]
    shown: list[Table | Text] = []
    for name in dict.fromkeys(point.method for point in points):
        mine = [point for point in points if point.method == name]
        scales = sorted({point.scaling for point in mine if point.rule != SELF_CONSISTENT}, key=lambda s: s or 0.0)
        numbers = [*("–" if scale is None else f"{scale:g}" for scale in scales), "self-consistent"]
        made = table("rank ratio", *numbers, right=numbers, title=name, title_justify="left")
        for ratio in dict.fromkeys(point.rank_ratio for point in mine):
            cells = {p.scaling: p for p in mine if p.rank_ratio == ratio and p.rule != SELF_CONSISTENT}
            rule = next((p for p in mine if p.rank_ratio == ratio and p.rule == SELF_CONSISTENT), None)
            last = "" if rule is None else f"{cell(rule, criterion, chosen)} at {rule.scaling:.3g}"
            row = [cell(cells.get(scale), criterion, chosen) for scale in scales]
            made.add_row("–" if ratio is None else f"{ratio:g}", *row, last)
        shown.append(made)
    if chosen is not None:
        shown.append(Text(f"Chosen by {select}: {in_words(chosen)}", style="bold"))
    return Group(*shown)


def cell(point: Point | None, criterion: str, chosen: Point | None) -> str:
    if point is None:
        return "·"
    value = getattr(point, criterion)
    text = "–" if value is None else f"{value:.3f}" if criterion == "entropy" else f"{100 * value:.1f}"
    return f"[bold]{text}*[/bold]" if chosen is not None and point.key == chosen.key else text


def in_words(point: Point) -> str:
    """CART, rank ratio 0.16, scaling 6: accuracy 86.9 %, entropy 0.653, agreement 85.1 %."""
    place = [point.method]
    place += [] if point.rank_ratio is None else [f"rank ratio {point.rank_ratio:g}"]
    place += [] if point.scaling is None else [f"scaling {point.scaling:.4g}"]
    accuracy = "" if point.accuracy is None else f"validation accuracy {100 * point.accuracy:.1f} %, "
    return f"{', '.join(place)}: {accuracy}entropy {point.entropy:.3f}, agreement {100 * point.agreement:.1f} %"
