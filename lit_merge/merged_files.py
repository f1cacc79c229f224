"""Merges of a configuration, written as files."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lit_merge.checkpoints import named
from lit_merge.checkpoints.resuming import Unfinished
from lit_merge.layout import Layout, Rows
from lit_merge.processes import ALONE, Processes
from lit_merge.sources import Sources
from lit_merge.streaming import write_job
from lit_merge.task_bank import TaskBank


def layout_of(sources: Sources, naming: str | None, dtype: torch.dtype | None = None) -> Layout:
    """How the merge of a configuration is written.

    Raises:
        MergeError: a naming that these weights have not.
    """
    if sources.saved is not None:
        bank, _ = sources.stored
        return Layout.of_bank(bank, bank.naming_of(naming), sources.experts, sources.base, dtype=dtype)
    assert sources.experts is not None
    names = None if naming is None else named(naming, sources.experts.shapes)
    return Layout.of(sources.experts, names, dtype=dtype)


def write_merge(
    sources: Sources,
    output: str,
    naming: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    processes: Processes = ALONE,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Merges and writes, weight by weight, each process its share. See `Layout.write`."""
    layout = layout_of(sources, naming, dtype)
    job = sources.job(processes.device) if sources.saved is None else None
    plan = sources.plan()
    plan = None if plan is None else [*plan, str(processes.device.type), str(dtype)]
    if job is not None:
        return write_job(layout, job, output, plan, max_shard_bytes, overwrite, processes, sources.at_scale, dtype)
    weights = partial(_of_bank, *sources.stored, dtype)
    return layout.write(output, weights, plan, max_shard_bytes, overwrite, processes)


def _of_bank(
    frame: TaskBank, read: Callable[[str], Tensor], dtype: torch.dtype | None, unfinished: Unfinished
) -> Iterator[Rows]:
    """Of a bank that was saved, of which one weight at a time is read."""
    names = unfinished.share({name: float(value.numel()) for name, value in frame.origin.items()})
    yield from (Rows(name, frame.weight_alone(name, read).weight(name, dtype)) for name in names)
