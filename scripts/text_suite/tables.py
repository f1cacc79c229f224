"""The study in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from lit_merge.choose.sweep import Point
from lit_merge.choose.sweep.points import SELF_CONSISTENT
from text_suite.bench import Bench
from text_suite.records import Record, file_name
from text_suite.rules import CRITERIA, Study

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


def draw_table(
    bench: Bench, methods: Mapping[str, Sequence[Record]], counts: Sequence[int], draws: int
) -> Iterator[str]:
    """A line per rule, a column per method: points of validation accuracy below the best point, mean over draws of few
    inputs, and the worst."""
    yield f"| rule, {draws} draws of {' / '.join(map(str, counts))} inputs | {' | '.join(methods)} |"
    yield f"|---|{'---|' * len(methods)}"
    lost: dict[str, dict[str, list[list[float]]]] = {}
    for method, records in methods.items():
        best = max(one.point.accuracy or 0.0 for one in records if one.point.rule != SELF_CONSISTENT)
        for count in counts:
            drawn = [bench.study(records, count, draw).choices() for draw in range(draws)]
            for rule in drawn[0]:
                found = [100 * (best - (one[rule].accuracy or 0.0)) for one in drawn]
                lost.setdefault(rule, {}).setdefault(method, []).append(found)
    for rule, columns in lost.items():
        cells = [" / ".join(f"{mean(found):.2f} ({max(found):.1f})" for found in columns[one]) for one in methods]
        yield f"| {rule} | {' | '.join(cells)} |"


def grid_table(study: Study, method: str) -> Iterator[str]:
    """All that was read of a method."""
    yield f"| {method} | validation | agreement | {' | '.join(CRITERIA)} |"
    yield f"|---|---|---|{'---|' * len(CRITERIA)}"
    for one in sorted(study.records, key=lambda one: (one.point.rank_ratio or 0.0, one.point.scaling or 0.0)):
        values = " | ".join(f"{study.value(one, criterion):.3f}" for criterion in CRITERIA)
        rule = "" if one.point.rule == "grid" else " self-consistent"
        agreement = 100 * (1 - study.value(one, "disagreement"))
        accuracy = 100 * (one.point.accuracy or 0.0)
        yield f"| {place(one.point)}{rule} | {accuracy:.1f} | {agreement:.1f} | {values} |"


def report(bench: Bench, choices: Mapping[int, Choices], methods: Mapping[str, Sequence[Record]]) -> str:
    """Everything.

    Args:
        bench: with the test accuracies.
        choices: number of inputs → method → rule → what it took.
        methods: what was read of each.
    """
    lines = [f"pretrained {100 * bench.tested('pretrained'):.1f}, experts {100 * bench.tested('experts'):.1f}", ""]
    for count, chosen in choices.items():
        lines += [*choice_table(bench, chosen, count), ""]
    lines += [*draw_table(bench, methods, (16, 64), draws=10), ""]
    for method, records in methods.items():
        lines += [*grid_table(bench.study(records, max(choices)), method), ""]
    return "\n".join(lines)
