"""What a bank of limited size keeps of every weight."""

from collections.abc import Iterable, Mapping
from statistics import fmean

from rich.console import Group, RenderableType
from rich.text import Text

from lit_merge.choose.compressed_tasks import TaskKept
from lit_merge.console import table
from lit_merge.merge.compressed_bank import Compressed
from lit_merge.report.weight_tree import collapsed, megabytes

NOTE = (
    "kept: share of the deltas' energy, their squared {norm}. error: ‖stored − exact‖ / ‖exact‖ of origin and deltas, "
    "over all tasks."
)
NORMS = {"frobenius": "Frobenius norm", "features": "norm E‖ΔW·x‖² on inputs of the tasks"}


def compression_table(found: Compressed, metric: str) -> RenderableType:
    """A row for every weight; those whose names differ in the number of their block only share one."""
    numbers = ("ranks", "bytes", "kept", "error")
    shown = table("weight", "origin", "deltas", *numbers, right=numbers)
    choice = found.choice
    for pattern, names in collapsed(choice.weights).items():
        packed = [choice.weights[name] for name in names]
        ranks = sorted({one.rank(row) for one in packed for row in one.rows})
        left, whole = _together(choice.left[name] for name in names if name in choice.left)
        both = _together([(left, whole), *(choice.origin[name] for name in names if name in choice.origin)])
        shown.add_row(
            f"{pattern} ({len(names)} alike)" if len(names) > 1 else pattern,
            ", ".join(dict.fromkeys(one.origin for one in packed)),
            ", ".join(dict.fromkeys(kind for one in packed for kind in one.ranks)),
            " to ".join(dict.fromkeys(map(str, (ranks[0], ranks[-1])))) if ranks else "",
            f"{sum(found.weights[name] for name in names):,}",
            f"{100 * (1 - left / whole):.1f} %" if whole else "",
            f"{(both[0] / both[1]) ** 0.5:.2g}" if both[1] else "0",
        )
    left, whole = _together(choice.left.values())
    kept = f"; {100 * (1 - left / whole):.2f} % of the deltas' energy kept" if whole else ""
    size = f"{found.nbytes:,} bytes ({megabytes(found.nbytes)}), {found.nbytes / found.model:.3f} times one model"
    return Group(shown, Text(NOTE.format(norm=NORMS[metric])), Text(f"{size}{kept}"))


def kept_table(tasks: Mapping[str, TaskKept]) -> RenderableType:
    """A row for every task, its name known: accuracy in the bank and in what is stored, in %, or how often both predict
    the same."""
    rows = {
        name: [value for value in (one.before, one.after, one.agreement) if value is not None]
        for name, one in tasks.items()
    }
    rows["mean"] = [fmean(column) for column in zip(*rows.values(), strict=True)]
    numbers = ("before", "stored", "same predictions")[-len(rows["mean"]) :]
    shown = table("task known", *numbers, right=numbers)
    for name, values in rows.items():
        shown.add_row(name, *(f"{100 * value:.1f}" for value in values))
    return shown


def _together(errors: Iterable[tuple[float, float]]) -> tuple[float, float]:
    pairs = list(errors)
    return sum(error for error, _ in pairs), sum(whole for _, whole in pairs)
