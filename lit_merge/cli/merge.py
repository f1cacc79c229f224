"""The verb `merge`: weights written as they are merged, or what would be done."""

from collections.abc import Callable

import torch

from lit_merge.checkpoints.conversion import DType, parse_size
from lit_merge.choose.sources import Sources, write_merge
from lit_merge.cli.dry_run import mismatches, plan_of, selection
from lit_merge.console import terminal
from lit_merge.errors import MergeError, MisfitError
from lit_merge.merge.processes import ALONE, Processes


def merge(
    sources: Sources,
    output: str,
    naming: str | None,
    max_shard_size: str | None,
    overwrite: bool,
    processes: Processes = ALONE,
    dtype: DType | None = None,
) -> None:
    """Merges, writes, and says which matrices were decomposed and which files were copied. See `Layout.write`."""
    size = None if max_shard_size is None else parse_size(max_shard_size)
    kind = None if dtype is None else getattr(torch, dtype)
    copied = write_merge(sources, output, naming, size, overwrite, processes, kind)
    console = terminal()
    if sources.experts is not None and sources.method is not None and sources.saved is None:
        console.print(selection(sources.experts, sources.method), soft_wrap=True, highlight=False)
    say_copied(copied)


def say_copied(names: list[str]) -> None:
    """Names the files that lie beside the weights."""
    if names:
        terminal().print(f"Copied beside the weights: {', '.join(names)}", soft_wrap=True, highlight=False)


def dry_run(sources: Callable[[], Sources], naming: str | None) -> None:
    """Says what `merge` would do, from headers alone.

    Args:
        sources: opens them.
        naming: which library's names the weights would get.

    Raises:
        MergeError: checkpoints that do not fit together, once every way in which they do not is told.
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
