"""Merges of a configuration, written as files."""

from collections.abc import Callable, Collection, Iterator
from functools import partial

from torch import Tensor

from lit_merge.bank_parts import bank_of, build_parts
from lit_merge.checkpoints import named
from lit_merge.checkpoints.resuming import Unfinished
from lit_merge.layout import Layout, Rows
from lit_merge.methods import Job, needs_all
from lit_merge.processes import ALONE, Processes
from lit_merge.sources import Sources
from lit_merge.task_bank import TaskBank


def layout_of(sources: Sources, naming: str | None) -> Layout:
    """How the merge of a configuration is written.

    Raises:
        MergeError: a naming that these weights have not.
    """
    if sources.saved is not None:
        bank, _ = sources.stored
        return Layout.of_bank(bank, bank.naming_of(naming), sources.experts, sources.base)
    assert sources.experts is not None
    return Layout.of(sources.experts, None if naming is None else named(naming, sources.experts.shapes))


def write_merge(
    sources: Sources,
    output: str,
    naming: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    processes: Processes = ALONE,
) -> list[str]:
    """Merges and writes, weight by weight, each process its share. See `Layout.write`."""
    layout = layout_of(sources, naming)
    if sources.saved is not None:
        weights = partial(_of_bank, *sources.stored)
    else:
        job = sources.job(processes.device)
        weights = (
            partial(_at_once, sources, job) if needs_all(job.method) else partial(_of_job, job, layout.in_blocks())
        )
    plan = sources.plan()
    plan = None if plan is None else [*plan, str(processes.device.type)]
    return layout.write(output, weights, plan, max_shard_bytes, overwrite, processes)


def _of_job(job: Job, in_blocks: Collection[str], unfinished: Unfinished) -> Iterator[Rows]:
    """Merged one after the other, in the memory of one weight of all experts."""
    names = unfinished.share(job.costs())
    for part in job.parts(None, names, in_blocks, factors=False):
        name, values, row, last = part.name, job.merged(part), part.row, part.last
        del part  # not while the next one is computed
        yield Rows(name, values, row, last)


def _of_bank(frame: TaskBank, read: Callable[[str], Tensor], unfinished: Unfinished) -> Iterator[Rows]:
    """Of a bank that was saved, of which one weight at a time is read."""
    names = unfinished.share({name: float(value.numel()) for name, value in frame.origin.items()})
    yield from (Rows(name, frame.weight_alone(name, read).weight(name)) for name in names)


def _at_once(sources: Sources, job: Job, unfinished: Unfinished) -> Iterator[Rows]:
    """Of a method that looks at all deltas together: all processes make them, the first one does what follows."""
    parts = build_parts(job, unfinished)
    if unfinished.processes.first:
        bank = sources.at_scale(bank_of(job, parts))
        yield from (Rows(name, bank.weight(name), last=False) for name in bank.origin)
