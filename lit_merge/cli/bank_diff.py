"""The command `bank diff`: what two banks differ in."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from lit_merge.bank.differences import Differences, differences
from lit_merge.bank.task_bank import TaskBank
from lit_merge.cli.command_parser import CommandParser
from lit_merge.console import LISTED, listed, table, terminal
from lit_merge.report.weight_tree import megabytes

ABOUT = """\
Compares two task banks, weight by weight: differences are relative, ‖B − A‖ / ‖A‖ in the Frobenius norm, of every
task's weights (origin + Δ of the task) and of the merges at the banks' own coefficients. A weight that is all zeros
in A and not in B differs by inf.
"""


def diff(arguments: Sequence[str]) -> None:
    """Compares and prints.

    Raises:
        MergeError: an option that does not exist, no bank there, a damaged one.
    """
    parser = CommandParser("bank diff", ABOUT)
    parser.add_argument("one", metavar="A", help="the first bank, by whose norms differences are measured")
    parser.add_argument("other", metavar="B", help="the second bank")
    parser.add_argument("--all", action="store_true", help=f"every weight that differs, rather than {LISTED} of them")
    options = parser.parse_args(arguments)
    one, other = TaskBank.load(options.one), TaskBank.load(options.other)
    console = terminal()
    console = console if console.is_terminal else terminal(width=200)
    console.print(report(one, other, differences(one, other), options.all), highlight=False)


def report(one: TaskBank, other: TaskBank, found: Differences, whole: bool) -> RenderableType:
    """What is to be said of two banks."""
    lines = [
        f"{name}: {len(bank.tasks)} tasks, {len(bank.origin)} weights, {megabytes(bank.nbytes)}, {bank.method_line}"
        for name, bank in (("A", one), ("B", other))
    ]
    for what, sides in (("tasks", found.tasks), ("weights", found.weights)):
        lines += [f"{what} only in {n}: {listed(side)}" for n, side in zip("AB", sides, strict=True) if side]
    if found.none:
        return Group(*(Text(line) for line in [*lines, "equal in tasks, weights, values and coefficients"]))
    if found.ranks:
        changed = [f"{name} {a or 'dense'} → {b or 'dense'}" for name, (a, b) in found.ranks.items()]
        lines.append(f"ranks that differ: {listed(changed)}")
    shown = table(
        "", "relative difference", "largest |λ_B − λ_A|", right=("relative difference", "largest |λ_B − λ_A|")
    )
    for task, apart in found.whole_experts.items():
        moved = found.coefficients.get(task)
        shown.add_row(task, f"{apart:.3g}", "" if moved is None else f"{moved:.3g}")
    shown.add_row("merge", f"{found.whole_merge:.3g}", "")
    return Group(*(Text(line) for line in lines), shown, _weights(found, whole))


def _weights(found: Differences, whole: bool) -> RenderableType:
    """The weights that are furthest apart."""
    worst = {
        name: max([value, found.merge[name], *(one[name] for one in found.experts.values())])
        for name, value in found.origin.items()
    }
    differing = sorted((name for name, value in worst.items() if value), key=lambda name: (-worst[name], name))
    if not differing:
        return Text("no weight differs")
    numbers = ("origin", "merge", "furthest task")
    shown = table("weight", *numbers, "", right=numbers)
    for name in differing if whole else differing[:LISTED]:
        of_tasks = {task: one[name] for task, one in found.experts.items()}
        task = max(of_tasks, key=lambda task: of_tasks[task]) if of_tasks else ""
        furthest = f"{of_tasks[task]:.3g}" if of_tasks else ""
        shown.add_row(name, f"{found.origin[name]:.3g}", f"{found.merge[name]:.3g}", furthest, task)
    left = 0 if whole else len(differing) - LISTED
    return Group(shown, Text(f"… and {left} more weights differ (--all lists them)")) if left > 0 else shown
