"""What a user sees on standard error while something runs: one look for every bar that is not Lightning's."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
# Names that a line holds.
TOLD = 8


def terminal(**options: Any) -> Console:
    """What results are printed on, `rich.console.Console` by its options: names of tasks and files stay as they are,
    whatever is in brackets or between colons."""
    return Console(**{"markup": False, "emoji": False} | options)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Passes the items on and draws a bar on a terminal's standard error; elsewhere it draws nothing."""
    console = terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=description)


def track_bytes(sizes: Mapping[str, int], description: str) -> Iterator[str]:
    """As `track`, of names with their sizes in bytes."""
    console = terminal(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=sum(sizes.values()))
        for name, size in sizes.items():
            yield name
            progress.advance(task, size)


def track_weights(weights: Iterable[T], sizes: Mapping[str, int], description: str) -> Iterator[T]:
    """As `track_bytes`, of weights that are read from files, with their sizes there."""
    stream = iter(weights)
    for _ in track_bytes(sizes, description):
        yield next(stream)


def say(text: str) -> None:
    """A line on standard error, once however many processes there are."""
    # Here: verbs that read files only do not wait for Lightning.
    from lightning.fabric.utilities import rank_zero_only

    rank_zero_only(terminal(stderr=True).print)(text, soft_wrap=True, highlight=False)
