"""What a user sees while something runs: progress bars, single lines, and warnings of one line each."""

import logging
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lit_merge.errors import MergeWarning

T = TypeVar("T")
# Where Lightning, torchrun and clusters say which process this is.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
# Names that a line holds.
LISTED = 8


def terminal(**options: Any) -> Console:
    """What results are printed on, `rich.console.Console` by its options: names of tasks and files stay as they are,
    whatever is in brackets or between colons."""
    return Console(**{"markup": False, "emoji": False} | options)


def table(*headings: str, right: Collection[str] = (), gap: int = 1, **options: Any) -> Table:
    """A table with these columns, `gap` spaces between them; the numbers, which must not break, are at the `right`."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), **options)
    for heading in headings:
        # Where a terminal is narrow, names break.
        if heading in right:
            made.add_column(heading, justify="right", no_wrap=True)
        else:
            made.add_column(heading, overflow="fold")
    return made


def listed(names: Sequence[str]) -> str:
    """Names in a line, as many as it holds, and how many there are.

    >>> listed(["a", "b"])
    'a, b'
    """
    return ", ".join(names[:LISTED]) + (f", … ({len(names)} in all)" if len(names) > LISTED else "")


def html_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line above it, for notebooks."""
    head = "".join(f"<th>{escape(one)}</th>" for one in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(one)}</td>' for one in row)}</tr>" for row in rows)
    return f"<div>{escape(title)}</div><table><tr>{head}</tr>{body}</table>"


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Passes the items on and draws a bar on a terminal's standard error; elsewhere it draws nothing."""
    console = terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=description)


def track_bytes(sizes: Mapping[str, int], description: str) -> Iterator[str]:
    """Passes names on and draws a bar of their sizes in bytes."""
    console = terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=sum(sizes.values()))
        for name, size in sizes.items():
            yield name
            progress.advance(task, size)


def track_weights(weights: Iterable[T], sizes: Mapping[str, int], description: str) -> Iterator[T]:
    """Passes weights on and draws a bar of the bytes that they have in their files."""
    stream = iter(weights)
    for _ in track_bytes(sizes, description):
        yield next(stream)


def say(text: str) -> None:
    """A line on standard error, once however many processes there are."""
    if all(os.environ.get(name, "0") == "0" for name in RANKS):
        terminal(stderr=True).print(text, soft_wrap=True, highlight=False)


def plain_warnings() -> None:
    """Shows warnings in one line each, and leaves out what Lightning says to developers, not to users."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        "does not have many workers",
        "args parameter is intended to run from within Python",
        "module\\(s\\) in eval mode at the start of training",
        "isinstance\\(treespec, LeafSpec\\)",
        "tensorboardX",
        "No seed found",
        "GPU available but not used",
        "your dataloader is not resumable",
        "smaller than the logging interval",
        "was deprecated in v4.49",
        "By default only one JsonargparseDeprecationWarning",
    ):
        warnings.filterwarnings("ignore", f"(?s).*{text}")
    warnings.formatwarning = _one_line


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    words = " ".join(str(message).split())
    return f"lit_merge: warning: {words}\n" if issubclass(category, MergeWarning) else f"{filename}:{lineno}: {words}\n"
