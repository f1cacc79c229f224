"""Merges and banks of a configuration's sources, written as they are made."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lit_merge.bank.low_rank import check_energy, check_rank_ratio
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import PLAIN, NamingName, named
from lit_merge.choose.sources import Sources
from lit_merge.merge.build import needs_all
from lit_merge.merge.export import DType, compress
from lit_merge.merge.job import Job, Part
from lit_merge.merge.layout import Layout, Rows
from lit_merge.merge.parts import bank_of, build_parts
from lit_merge.merge.processes import ALONE, Processes
from lit_merge.merge.resuming import Unfinished, resuming
from lit_merge.merge.write import write_job


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


def write_bank(
    sources: Sources,
    output: str | Path,
    rank_ratio: float = 1.0,
    energy: float = 1.0,
    dtype: DType | None = None,
    naming: NamingName | None = None,
    overwrite: bool = False,
    processes: Processes = ALONE,
) -> None:
    """Builds a bank of experts and writes it, the same to the byte as `export_bank` of `Sources.bank`, in the memory of
    one weight of all experts. Methods that look at all deltas at once have the bank in memory, in the first process.

    Args:
        sources: experts and a method.
        output: the folder of the bank.
        rank_ratio, energy, dtype, naming, overwrite: as of `export_bank`.
        processes: which build it together; each decomposes its share of the matrices.

    Raises:
        MergeError: as `export_bank` and `build_bank`.
    """
    check_rank_ratio(rank_ratio)
    check_energy(energy)
    job = sources.job(processes.device)
    experts = job.experts
    names = experts.naming if naming is None else named(naming, experts.shapes)
    at_once = needs_all(job.method)
    plan = sources.plan()
    # What is cut before it is written is another part.
    plan = None if plan is None else [*plan, processes.device.type, None if at_once else (rank_ratio, energy, dtype)]
    with resuming(output, plan, overwrite=overwrite, processes=processes) as unfinished:
        if at_once:
            parts = build_parts(job, unfinished)
            if processes.first:
                bank = replace(sources.at_scale(bank_of(job, parts)), naming=names)
                compress(bank, rank_ratio, energy, dtype).save(unfinished.path, overwrite=True)
            return
        parts = build_parts(job, unfinished, lambda part: _cut(job, part, rank_ratio, energy, dtype))
        if processes.first:
            frame = replace(job.bank(*parts.collect(experts.shapes, parts.empty)), naming=names)
            values = {"coefficients": frame.coefficients}
            frame.save(unfinished.path, True, lambda key: values[key] if key in values else parts.read(key))


def _cut(job: Job, part: Part, rank_ratio: float, energy: float, dtype: DType | None) -> Part:
    """The part as it is in the bank when that is compressed."""
    deltas = {} if part.delta is None else {part.name: part.delta}
    origin, none = {part.name: part.origin}, torch.zeros(0, 0)
    alone = TaskBank(job.experts.tasks, origin, deltas, none, job.experts.dtypes, {}, PLAIN)
    cut = compress(alone, rank_ratio, energy, dtype)
    return replace(part, origin=cut.origin[part.name], delta=cut.deltas.get(part.name))
