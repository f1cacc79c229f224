"""What a user sees while something runs: progress bars, single lines, and warnings of one line each."""

import json
import logging
import math
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lit_merge.errors import MergeWarning

T = TypeVar("T")
# Where Lightning, torchrun and clusters say which process this is.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
# Names that a line holds.
LISTED = 8


@dataclass(frozen=True)
class Manner:
    """How much a command says, and in which form.

    Attributes:
        quiet: results, warnings and errors only: no progress, no notes.
        json: everything on standard output is a line of JSON with its kind as `event`.
    """

    quiet: bool = False
    json: bool = False

    @property
    def live(self) -> bool:
        """Whether something may move on standard error."""
        console = terminal(stderr=True)
        return not (self.quiet or self.json) and (console.is_terminal or console.is_jupyter)


_manner = Manner()


def manner() -> Manner:
    """That of the command that runs."""
    return _manner


def use_manner(wanted: Manner) -> None:
    """For the rest of the command."""
    global _manner
    _manner = wanted


def event(kind: str, content: Mapping[str, Any]) -> None:
    """A line of JSON on standard output. What is not finite, which JSON has no number for, is null."""
    if is_first():
        print(json.dumps({"event": kind, **_finite(dict(content))}), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(renderable: RenderableType, kind: str, content: Mapping[str, Any], **options: Any) -> None:
    """A result on standard output: for people, or as an event."""
    if _manner.json:
        event(kind, content)
    else:
        terminal().print(renderable, **options)


def note(text: str, kind: str, content: Mapping[str, Any]) -> None:
    """What is said of a result on standard output, as where it is: for people who want to know, or as an event."""
    if _manner.json:
        event(kind, content)
    elif not _manner.quiet:
        terminal().print(text, soft_wrap=True, highlight=False)


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
    with Progress(*columns, console=console, transient=True, disable=not _manner.live) as progress:
        yield from progress.track(items, total=total, description=description)


def track_bytes(sizes: Mapping[str, int], description: str) -> Iterator[str]:
    """Passes names on and draws a bar of their sizes in bytes."""
    console = terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not _manner.live) as progress:
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
    """A line on standard error, once however many processes there are; nothing for users who want none."""
    if _manner.json:
        event("note", {"text": text})
    elif is_first() and not _manner.quiet:
        terminal(stderr=True).print(text, soft_wrap=True, highlight=False)


def is_first() -> bool:
    """Whether this is the first process of a command, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


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
