"""Merges that are written as they are made: in the memory of one weight of all experts, not of a model."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

import torch

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Source, named
from lit_merge.checkpoints.conversion import parse_size
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.merge.build import needs_all
from lit_merge.merge.job import Job, Svd
from lit_merge.merge.layout import Layout, Rows
from lit_merge.merge.parts import bank_of, build_parts
from lit_merge.merge.processes import ALONE, Processes
from lit_merge.merge.resuming import UnfinishedMerge
from lit_merge.methods import MergeMethod, Transform


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
    opened = experts if isinstance(experts, Experts) else Experts(experts, base, exclude)
    if method.scale == "entropy":
        raise MergeError(
            "scaling='entropy' looks at data, which merge_files has none of: name a number, or build_bank and "
            "choose_scaling"
        )
    layout = Layout.of(opened, None if naming is None else named(naming, opened.shapes), dtype=dtype)
    size = None if max_shard_size is None else parse_size(max_shard_size)
    write_job(layout, Job.open(opened, method, transform, None, svd), output, None, size, overwrite, dtype=dtype)


def write_job(
    layout: Layout,
    job: Job,
    output: str | os.PathLike[str],
    plan: object = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    processes: Processes = ALONE,
    at_scale: Callable[[TaskBank], TaskBank] = lambda bank: bank,
    dtype: torch.dtype | None = None,
) -> list[str]:
    """Runs a method over experts and writes what comes of it. See `Layout.write`.

    Args:
        at_scale: puts a bank to the scale that a rule finds, where the method has one.
        dtype: of the floating-point weights; None for the experts'.
    """
    if needs_all(job.method):
        weights = partial(_at_once, job, at_scale, dtype)
    else:
        weights = partial(_one_by_one, job, layout.in_blocks(), dtype)
    return layout.write(output, weights, plan, max_shard_bytes, overwrite, processes)


def _one_by_one(
    job: Job, in_blocks: Collection[str], dtype: torch.dtype | None, unfinished: UnfinishedMerge
) -> Iterator[Rows]:
    """Merged one after the other, in the memory of one weight of all experts."""
    names = unfinished.share(job.costs())
    for part in job.parts(dtype, names, in_blocks, factors=False):
        name, values, row, last = part.name, job.merged(part, dtype), part.row, part.last
        del part  # not while the next one is computed
        yield Rows(name, values, row, last)


def _at_once(
    job: Job, at_scale: Callable[[TaskBank], TaskBank], dtype: torch.dtype | None, unfinished: UnfinishedMerge
) -> Iterator[Rows]:
    """Of a method that looks at all deltas together: all processes make them, the first one does what follows."""
    parts = build_parts(job, unfinished, dtype=dtype)
    if unfinished.processes.first:
        bank = at_scale(bank_of(job, parts))
        yield from (Rows(name, bank.weight(name, dtype), last=False) for name in bank.origin)
