"""What a merge would do, from headers alone."""

import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lit_merge.errors import MergeError
from lit_merge.experts import Experts, Weight
from lit_merge.inspection.weights import collapsed, megabytes, millions, runs_of
from lit_merge.low_rank import LowRank
from lit_merge.merged_files import layout_of
from lit_merge.methods import MergeMethod, MomentsMethod
from lit_merge.report import describe_method
from lit_merge.sources import Sources

# The smaller side of the matrices that the method is timed on.
TRIAL = 192
# What Python, torch and Lightning take before anything is merged, in bytes.
IMPORTS = 700_000_000
# Bytes per second from a disk that is neither slow nor fast.
READ = 5e8


def plan_of(sources: Sources, naming: str | None = None) -> RenderableType:
    """Experts, base, weights with their ranks, size of the result, and what memory and time to expect."""
    if sources.saved is not None:
        raise MergeError("a dry run is of experts and a method: leave --model.bank out, or look at it with inspect")
    experts, method = sources.experts, sources.method
    assert experts is not None
    assert method is not None
    layout = layout_of(sources, naming)
    shapes = {experts.shapes[name] for name in method.selected(experts.shapes)}
    trials = {shape: try_out(experts, method, shape) for shape in shapes}
    notes = [
        f"Result: {len(layout.shapes)} weights, {megabytes(layout.nbytes)}; memory about "
        f"{megabytes(IMPORTS + memory_of(experts))}, time {time_of(experts, method, trials)}.",
        "Nothing was merged or written.",
    ]
    if isinstance(method, MomentsMethod) and method.moments is None:
        notes.insert(1, f"{type(method).__name__} runs the network on unlabelled inputs first, which is not counted.")
    title = f"{describe_method(method.describe())} of {len(experts.tasks)} experts"
    return Group(Text(title), files_table(experts), weights_table(experts, method, trials), Text("\n".join(notes)))


def files_table(experts: Experts) -> Table:
    """A row per checkpoint."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "checkpoint", "weights", "parameters", "size", "dtypes", "not merged"):
        table.add_column(heading, justify="right" if heading in ("weights", "parameters", "size") else "left")
    rows = dict(experts.whole) | ({} if experts.whole_base is None else {"base": experts.whole_base})
    for task, file in rows.items():
        left = [name for name in file.shapes if name not in experts.shapes]
        count = sum(math.prod(shape) for shape in file.shapes.values())
        dtypes = runs_of(str(dtype).removeprefix("torch.") for dtype in file.dtypes.values())
        size = megabytes(file.nbytes)
        table.add_row(task, file.label, str(len(file.shapes)), millions(count), size, dtypes, told(left))
    return table


def told(names: list[str]) -> str:
    shown = ", ".join(names[:2])
    return f"{shown}, … ({len(names)})" if len(names) > 2 else shown


def weights_table(experts: Experts, method: MergeMethod, trials: Mapping[tuple[int, ...], "Trial"]) -> Table:
    """A row per kind of weight: which are decomposed, and at which rank; weights of one kind in several blocks once."""
    selected = method.selected(experts.shapes)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("weight", "number", "shape", "treated as"):
        table.add_column(heading, justify="right" if heading == "number" else "left")
    for pattern, names in collapsed(experts.shapes).items():
        kinds = Counter((experts.shapes[name], name in selected) for name in names)
        for (shape, chosen), count in kinds.items():
            what = "matrix" + trials[shape].told(shape) if chosen else "the rest"
            table.add_row(pattern, str(count), " × ".join(map(str, shape)) or "a number", what)
    return table


def memory_of(experts: Experts) -> int:
    """Bytes of the largest weight of all experts in float32, with its differences and what a decomposition takes."""
    largest = max(math.prod(shape) for shape in experts.shapes.values())
    return 4 * largest * (3 * len(experts.tasks) + 4)


def time_of(experts: Experts, method: MergeMethod, trials: Mapping[tuple[int, ...], "Trial"]) -> str:
    """From the trials, and from the bytes to read."""
    shapes = Counter(experts.shapes[name] for name in method.selected(experts.shapes))
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

    def told(self, shape: tuple[int, ...]) -> str:
        return "" if self.share is None else f", rank {max(1, round(self.share * min(shape)))}"


def try_out(experts: Experts, method: MergeMethod, shape: tuple[int, ...]) -> Trial:
    """A trial for matrices of this shape."""
    scale = min(1.0, TRIAL / min(shape))
    m, n = (max(1, round(side * scale)) for side in shape)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(experts.tasks), m, n, generator=generator)
    run = replace(method, moments=None) if isinstance(method, MomentsMethod) else method
    start = time.perf_counter()
    _, delta = run.matrix(Weight("trial", values, torch.zeros(m, n)))
    taken = time.perf_counter() - start
    share = delta.rank / min(m, n) if isinstance(delta, LowRank) else None
    return Trial(taken * math.prod(shape) * min(shape) / (m * n * min(m, n)), share)
