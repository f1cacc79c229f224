"""The study in Markdown."""

from collections.abc import Iterator, Mapping, Sequence

from lit_merge.sweep import Point
from text_suite.bench import Bench
from text_suite.records import file_name
from text_suite.rules import CRITERIA

Choices = Mapping[str, Mapping[str, Point]]


def choice_table(bench: Bench, chosen: Choices, count: int) -> Iterator[str]:
    """A line per rule, a column per method: test accuracy, how far from the labels' choice, and (rank ratio, scale).

    Args:
        bench: with the test accuracies.
        chosen: method → rule → what it took.
        count: of unlabelled inputs per task, for the heading.
    """
    yield f"| rule ({count} inputs a task) | {' | '.join(chosen)} | mean distance |"
    yield f"|---|{'---|' * (len(chosen) + 1)}"
    for rule in next(iter(chosen.values())):
        cells, apart = [], []
        for rules in chosen.values():
            if rule not in rules:
                cells.append("–")
                continue
            found, labels = (bench.tested(file_name(rules[one])) for one in (rule, "labels"))
            apart.append(100 * (found - labels))
            cells.append(f"{100 * found:.1f} {apart[-1]:+.1f} {place(rules[rule])}")
        yield f"| {rule} | {' | '.join(cells)} | {sum(apart) / len(apart):+.2f} |"


def place(point: Point) -> str:
    """(.16, 3), or (3) for a method without a rank."""
    ratio = "" if point.rank_ratio is None else f"{point.rank_ratio:g}, "
    return f"({ratio}{point.scaling:.3g})"


def grid_table(bench: Bench, method: str, count: int) -> Iterator[str]:
    """All that was read of a method."""
    study = bench.study(method, count)
    yield f"| {method} | validation | agreement | {' | '.join(CRITERIA)} |"
    yield f"|---|---|---|{'---|' * len(CRITERIA)}"
    for one in sorted(study.records, key=lambda one: (one.point.rank_ratio or 0.0, one.point.scaling or 0.0)):
        values = " | ".join(f"{study.value(one, criterion):.3f}" for criterion in CRITERIA)
        rule = "" if one.point.rule == "grid" else " self-consistent"
        agreement = 100 * (1 - study.value(one, "disagreement"))
        accuracy = 100 * (one.point.accuracy or 0.0)
        yield f"| {place(one.point)}{rule} | {accuracy:.1f} | {agreement:.1f} | {values} |"


def report(bench: Bench, choices: Mapping[int, Choices], methods: Sequence[str]) -> str:
    """Everything.

    Args:
        bench: with the test accuracies.
        choices: number of inputs → method → rule → what it took.
        methods: those that were read.
    """
    lines = [f"pretrained {100 * bench.tested('pretrained'):.1f}, experts {100 * bench.tested('experts'):.1f}", ""]
    for count, chosen in choices.items():
        lines += [*choice_table(bench, chosen, count), ""]
    for method in methods:
        lines += [*grid_table(bench, method, max(choices)), ""]
    return "\n".join(lines)
