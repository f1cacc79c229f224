"""What a merge would do, from headers alone."""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lit_merge.bank.low_rank import LowRank
from lit_merge.checkpoints.companions.files import companions_of, ties_head
from lit_merge.choose.sources import Sources
from lit_merge.choose.write import layout_of
from lit_merge.console import table, terminal
from lit_merge.errors import MergeError, MisfitError
from lit_merge.experts.experts import Experts
from lit_merge.experts.weight import Weight
from lit_merge.merge.checks import check_merge
from lit_merge.methods import MergeMethod, MomentsMethod
from lit_merge.report.report import describe_method
from lit_merge.report.weight_tree import collapsed, megabytes, millions, runs_of

# The smaller side of the matrices that the method is timed on.
TRIAL = 192
# What Python, torch and Lightning take before anything is merged, in bytes.
IMPORTS = 560_000_000
# Bytes per second from a disk that is neither slow nor fast.
READ = 5e8
# Of a long list.
SHOWN = 20


def plan_of(sources: Sources, naming: str | None = None) -> RenderableType:
    """Experts, base, weights with their ranks, size of the result, and what memory and time to expect.

    Raises:
        MergeError: a bank instead of experts, a base that is missing, matrices that are none.
    """
    if sources.saved is not None:
        raise MergeError("a dry run is of experts and a method: leave --model.bank out, or look at it with inspect")
    experts, method = sources.experts, sources.method
    assert experts is not None
    assert method is not None
    with_base = check_merge(experts, method, sources.transform)
    layout = layout_of(sources, naming)
    trials = {}
    for name in sorted(method.selected(experts.shapes, len(experts.tasks))):
        if (shape := experts.shapes[name]) not in trials:
            trials[shape] = try_out(experts, method, name)
    whole = method.needs_all
    notes = [
        selection(experts, method),
        *tied_weights(experts),
        f"Result: {len(layout.shapes)} weights, {megabytes(layout.nbytes)}; memory about "
        f"{megabytes(IMPORTS + memory_of(experts, with_base, trials, whole))}, time "
        f"{time_of(experts, method, trials)}.",
        "Nothing was merged or written.",
    ]
    if isinstance(method, MomentsMethod) and method.moments is None:
        name = type(method).__name__
        message = (
            f"{name} looks at unlabelled inputs first, which is not counted; without any: {method.without_moments}."
        )
        notes.insert(-1, message)
    message = describe_method(method.describe())
    if sources.transform is not None:
        message = f"{type(sources.transform).__name__} and {message}"
    title = Text(f"{message} of {len(experts.tasks)} experts")
    return Group(title, files_table(experts), weights_table(experts, method, trials), Text("\n".join(notes)))


def mismatches(differences: Sequence[MergeError]) -> RenderableType:
    """Every way in which experts do not fit together, the first of many."""
    lines = [f"{number}. {one}" for number, one in enumerate(differences[:SHOWN], 1)]
    if len(differences) > SHOWN:
        lines.append(f"… and {len(differences) - SHOWN} more")
    return Text("\n".join(lines))


def selection(experts: Experts, method: MergeMethod) -> str:
    """Which weights go through the method as matrices, in one line."""
    selected = method.selected(experts.shapes, len(experts.tasks))
    count = sum(len(shape) == 2 for shape in experts.shapes.values())
    if not selected:
        return f"{type(method).__name__} decomposes nothing: it takes every weight as it is."
    kinds = list(collapsed(name for name in experts.shapes if name in selected))
    message = ", ".join(kinds[:SHOWN]) + (", …" if len(kinds) > SHOWN else "")
    rest = count - len(selected)
    whole = f"; the other {rest} are taken as they are" if rest else ""
    return (
        f"Decomposed as matrices: {len(selected)} of {count} 2-D weights ({message}){whole}. "
        "--model.method.matrices says which."
    )


def selected_weights(experts: Experts, method: MergeMethod) -> dict[str, list[str]]:
    """The names of those weights, for an event."""
    return {"matrices": sorted(method.selected(experts.shapes, len(experts.tasks)))}


def tied_weights(experts: Experts) -> list[str]:
    """A line per group of names of one and the same weight, as far as files and their configurations say."""
    files = [*experts.whole.values(), *([] if experts.whole_base is None else [experts.whole_base])]
    lines = {f"Tied: {' = '.join(group)}." for file in files for group in file.tied}
    found = companions_of(files)
    if found is not None and (tied := ties_head(found.folder, experts.shapes)) is not None:
        lines.add(f"Tied: the output layer is {tied} (config.json), and is not written a second time.")
    return sorted(lines)


def files_table(experts: Experts) -> Table:
    """A row per checkpoint."""
    numbers = ("weights", "parameters", "size")
    made = table("", "checkpoint", *numbers, "dtypes", "not merged", right=numbers, gap=2)
    rows = dict(experts.whole) | ({} if experts.whole_base is None else {"base": experts.whole_base})
    for task, file in rows.items():
        left = [name for name in file.shapes if name not in experts.shapes]
        count = sum(math.prod(shape) for shape in file.shapes.values())
        dtypes = runs_of(str(dtype).removeprefix("torch.") for dtype in file.dtypes.values())
        size = megabytes(file.nbytes)
        made.add_row(task, file.label, str(len(file.shapes)), millions(count), size, dtypes, shortened(left))
    return made


def shortened(names: list[str]) -> str:
    shown = ", ".join(names[:2])
    return f"{shown}, … ({len(names)})" if len(names) > 2 else shown


def weights_table(experts: Experts, method: MergeMethod, trials: Mapping[tuple[int, ...], "Trial"]) -> Table:
    """A row per kind of weight: which are decomposed, and at which rank; weights of one kind in several blocks once."""
    selected = method.selected(experts.shapes, len(experts.tasks))
    made = table("weight", "number", "shape", "treated as", right=["number"], gap=2)
    for pattern, names in collapsed(experts.shapes).items():
        kinds = Counter((experts.shapes[name], name in selected) for name in names)
        for (shape, chosen), count in kinds.items():
            what = "matrix" + trials[shape].rank_at(shape) if chosen else "the rest"
            made.add_row(pattern, str(count), " × ".join(map(str, shape)) or "a number", what)
    return made


def memory_of(experts: Experts, with_base: bool, trials: Mapping[tuple[int, ...], "Trial"], whole: bool) -> int:
    """Bytes of the weight that takes most, of all experts in float32 with what is computed from them; and of a bank,
    where the method looks at all weights at once."""
    tasks = len(experts.tasks)
    counts = {name: math.prod(shape) for name, shape in experts.shapes.items()}
    # In float32, with differences, what is merged of them and that as it is stored; decomposed, as much once more.
    peak = max(
        count * (4 * (tasks + with_base) + tasks * (12 + experts.dtypes[name].itemsize))
        + (8 * count * tasks if experts.shapes[name] in trials else 0)
        for name, count in counts.items()
    )
    return peak + (experts.nbytes if whole else 0)


def time_of(experts: Experts, method: MergeMethod, trials: Mapping[tuple[int, ...], "Trial"]) -> str:
    """From the trials, and from the bytes to read."""
    shapes = Counter(experts.shapes[name] for name in method.selected(experts.shapes, len(experts.tasks)))
    seconds = sum(count * trials[shape].seconds for shape, count in shapes.items())
    seconds += sum(file.nbytes for file in experts.whole.values()) / READ
    return f"about {max(1, round(seconds))} seconds on {os.cpu_count()} cores"


@dataclass(frozen=True)
class Trial:
    """What a method made of random matrices of a smaller size.

    Attributes:
        seconds: that it would take for a matrix of the full size, by m·n·min(m, n).
        share: of its directions that a task's delta has; None where the delta is not of low rank.
    """

    seconds: float
    share: float | None

    def rank_at(self, shape: tuple[int, ...]) -> str:
        return "" if self.share is None else f", rank {max(1, round(self.share * min(shape)))}"


def try_out(experts: Experts, method: MergeMethod, name: str) -> Trial:
    """A trial for matrices of the shape of this weight."""
    shape = experts.shapes[name]
    scale = min(1.0, TRIAL / min(shape))
    m, n = (max(1, round(side * scale)) for side in shape)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(experts.tasks), m, n, generator=generator)
    run = method
    if isinstance(method, MomentsMethod):
        run = replace(method, moments={task: {name: torch.eye(n)} for task in experts.tasks})
    for _ in range(2):  # the first time includes what is loaded once
        start = time.perf_counter()
        _, delta = run.matrix(Weight(name, values, torch.zeros(m, n)))
        taken = time.perf_counter() - start
    share = delta.rank / min(m, n) if isinstance(delta, LowRank) else None
    return Trial(taken * math.prod(shape) * min(shape) / (m * n * min(m, n)), share)


def dry_run(sources: Callable[[], Sources], naming: str | None) -> None:
    """Says what `merge` would do, from headers alone.

    Args:
        sources: opens them.
        naming: which library's names the weights would get.

    Raises:
        MergeError: checkpoints that do not fit together, once every way in which they do not has been listed.
    """
    console = terminal()
    # Into a file or a pipe nothing is cut off.
    console = console if console.is_terminal else terminal(width=1000)
    try:
        plan = plan_of(sources(), naming)
    except MisfitError as error:
        console.print(mismatches(error.all), soft_wrap=True, highlight=False)
        raise MergeError(f"these do not fit together, in {len(error.all)} ways: nothing can be merged") from error
    console.print(plan, highlight=False)
