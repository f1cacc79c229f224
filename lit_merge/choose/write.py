"""Merges and banks of a configuration's sources, written as they are made."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from lit_merge.bank.files import BANK
from lit_merge.bank.low_rank import check_energy, check_rank_ratio
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import PLAIN, NamingName, Source, named
from lit_merge.checkpoints.conversion import shard_size
from lit_merge.checkpoints.inputs import check_apart
from lit_merge.checkpoints.locations import destination
from lit_merge.choose.sources import Sources
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.merge.checks import check_made_of
from lit_merge.merge.export import DType, compress
from lit_merge.merge.job import Job, Part, Svd
from lit_merge.merge.layout import Layout
from lit_merge.merge.parts import bank_of, build_parts
from lit_merge.merge.processes import ALONE, Processes
from lit_merge.merge.resuming import resuming
from lit_merge.methods import MergeMethod, Transform


def layout_of(sources: Sources, naming: str | None, dtype: torch.dtype | None = None) -> Layout:
    """How the merge of a configuration is written.

    Raises:
        MergeError: a naming that does not know these weights.
    """
    if sources.saved is not None:
        bank, _ = sources.stored
        return Layout.of_bank(bank, bank.naming_of(naming), sources.experts, sources.base, dtype=dtype)
    assert sources.experts is not None
    names = None if naming is None else named(naming, sources.experts.shapes)
    return Layout.of(sources.experts, names, dtype=dtype)


def write_merge(
    sources: Sources,
    output: str | os.PathLike[str],
    naming: str | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    processes: Processes = ALONE,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Merges and writes, weight by weight, each process its share.

    Args:
        sources: what is merged.
        output: a `.safetensors` file, or else a folder; see `Layout.writing`.
        naming: whose names the weights get; None for those in the experts' files.
        max_shard_bytes: of one file in a folder.
        overwrite: replace what stands there.
        processes: which write it together.
        dtype: of the floating-point weights; None for the experts'.

    Returns:
        Names of the files that were copied next to the weights.
    """
    check_apart(destination(output), sources.files)
    layout, plan = layout_of(sources, naming, dtype), None
    job = sources.job(processes.device) if sources.saved is None else None
    if (made_of := sources.plan()) is not None:
        plan = [*made_of, str(processes.device.type), str(dtype)]
    with layout.writing(output, plan, max_shard_bytes, overwrite, processes) as writer:
        if job is None:
            frame, saved = sources.stored
            for name in writer.unfinished.share({name: float(v.numel()) for name, v in frame.origin.items()}):
                writer.put(name, saved.weight(name, dtype))
        elif job.method.needs_all:
            # All processes make the deltas, the first one does what follows.
            parts = build_parts(job, writer.unfinished, dtype=dtype)
            bank = sources.at_scale(bank_of(job, parts)) if processes.first else None
            for name in bank.origin if bank is not None else ():
                writer.put(name, bank.weight(name, dtype), last=False)  # type: ignore[union-attr]
        else:
            names = writer.unfinished.share(job.costs())
            for part in job.parts(dtype, names, layout.in_blocks(), factors=False):
                writer.put(part.name, job.merged(part, dtype), part.row, part.last)
                del part  # not while the next one is computed
    return writer.copied


def merge_files(
    experts: Mapping[str, Source] | Experts,
    output: str | os.PathLike[str],
    base: Source | None = None,
    *,
    method: MergeMethod,
    transform: Transform | None = None,
    exclude: Sequence[str] = (),
    svd: Svd = "auto",
    naming: str | None = None,
    max_shard_size: str | None = None,
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Merges experts into files, as the verb `merge` does: whole or not at all, however large the models are.

    Args:
        experts: task → path or state dict, in the order of the tasks.
        output: a `.safetensors` file, or else a folder, see `max_shard_size`.
        base: the pretrained checkpoint; optional where the method needs none (CART, weight averaging).
        method: what to do with every weight. Of the rules for its scale, only `self_consistent` can be followed here.
        transform: what to do with the task vectors first, for example `AWD()`.
        exclude: shell patterns of weights that are not merged.
        svd: see `build_bank`.
        naming: `open_clip`, `openai`, `hugging_face`, `canonical`; None for the names in the experts' files.
        max_shard_size: of one file in a folder, as "5GB", the default; configuration and tokenizer come along there.
        overwrite: replace what stands there.
        dtype: of the floating-point weights; None for the experts'.

    Raises:
        MergeError: experts that do not fit together, a method that lacks what it needs, an output that exists or cannot
            be written.
    """
    check_made_of(experts, method, transform)
    opened = experts if isinstance(experts, Experts) else Experts(experts, base, exclude)
    if method.scale == "entropy":
        raise MergeError(
            "scaling='entropy' looks at data, which merge_files has none of: name a number, or build_bank and "
            "choose_scaling"
        )
    size = shard_size(max_shard_size, output)
    sources = Sources(experts=cast(Any, opened), method=method, transform=transform, svd=svd)
    write_merge(sources, output, naming, size, overwrite, dtype=dtype)


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
    check_apart(destination(output), sources.files)
    job = sources.job(processes.device)
    experts = job.experts
    names = experts.naming if naming is None else named(naming, experts.shapes)
    at_once = job.method.needs_all
    plan = sources.plan()
    # What is cut before it is written is another part.
    plan = None if plan is None else [*plan, processes.device.type, None if at_once else (rank_ratio, energy, dtype)]
    with resuming(output, plan, None, overwrite, processes, BANK) as unfinished:
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
