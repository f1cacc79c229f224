"""What a bank can leave the house as: a smaller bank, merged weights, one task's weights."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Checkpoint, NamingName
from lit_merge.checkpoints.conversion import DType, shard_size
from lit_merge.checkpoints.folders import SUFFIXES
from lit_merge.checkpoints.inputs import check_apart
from lit_merge.checkpoints.locations import destination
from lit_merge.console import say
from lit_merge.errors import MergeError, check_choice
from lit_merge.experts.experts import Experts
from lit_merge.merge.adapters.differences import Cut
from lit_merge.merge.adapters.export import export_adapters
from lit_merge.merge.adapters.parts import Rest
from lit_merge.merge.clip_folders import Library, export_clip
from lit_merge.merge.layout import PROGRAMS, Layout, is_file
from lit_merge.merge.programs import Program, check_program, export_program
from lit_merge.merge.state_files import TORCH, save_state
from lit_merge.networks import Network

Format = Literal["bank", "merged", "task", "lora", "open_clip", "hugging_face", "torch_export", "onnx"]


def compress(bank: TaskBank, rank_ratio: float = 1.0, energy: float = 1.0, dtype: DType | None = None) -> TaskBank:
    """The bank cut as `TaskBank.truncate` does and stored in a precision; None keeps its own."""
    bank = bank.truncate(rank_ratio, energy)
    return bank if dtype is None else bank.to(getattr(torch, dtype))


def export_bank(
    bank: TaskBank,
    output: str | Path,
    format: Format = "bank",
    task: str | None = None,
    rank_ratio: float = 1.0,
    energy: float = 1.0,
    dtype: DType | None = None,
    overwrite: bool = False,
    naming: NamingName | None = None,
    max_shard_size: str | None = None,
    experts: Experts | None = None,
    base: Checkpoint | None = None,
    rest: Rest = "adapter",
    base_name: str | None = None,
    network: Network | None = None,
    config: str | None = None,
) -> list[str]:
    """Writes a bank in one of the formats.

    Args:
        bank: with the coefficients to use.
        output: a folder; for `merged` and `task` what `merge` writes, a .safetensors file or a folder, or a .pt file of
            `torch.save`; a .pt2 file for `torch_export`, a .onnx file for `onnx`.
        format: `bank`; `merged`, one model for all tasks; `task`, one task's model from the bank (task indexing);
            `lora`, see `export_adapters`; `open_clip` and `hugging_face`, see `export_clip`; `torch_export` and `onnx`,
            see `export_program`.
        task: which task, for `task`; for `lora`, where `merged` is the merge; and for the others, of which None takes
            the merge.
        rank_ratio, energy: cut the bank first, as `TaskBank.truncate`.
        dtype: of what is written; None keeps the bank's precision, and the experts' for weights.
        overwrite: replace what stands there.
        naming: which library's names a CLIP's weights get, or those of a bank's merges; None keeps the experts'.
        max_shard_size: of one file in a folder of `merged` or `task`, as 2GB; 5GB by default.
        experts: that the bank was made of, where they are at hand: a folder of weights gets what lies next to them.
        base: or the model that they were made from.
        rest, base_name: of adapters, see `export_adapters`.
        network: encoder and heads, which programs have in them.
        config: of a CLIP, as networks take it, where none lies next to experts or base.

    Returns:
        Names of the files that were copied next to the weights.

    Raises:
        MergeError: `task` missing or not in the bank; an option that the format has no use for; a share outside (0, 1],
            a path that cannot be written; no such naming, or one that does not have these weights; experts or a base of
            another model.
    """
    check_export(output, format, task, max_shard_size, rest, naming)
    check_choice("dtype", dtype, DType)
    check_apart(
        destination(output), [*([] if experts is None else experts.files), *([] if base is None else base.files)]
    )
    names = bank.naming_of(naming)
    if format == "bank":
        compress(replace(bank, naming=names), rank_ratio, energy, dtype).save(output, overwrite)
        return []
    kind = None if dtype is None else getattr(torch, dtype)
    if format == "lora":
        cut = Cut(rank_ratio, energy)
        return export_adapters(bank, output, names, task, cut, rest, kind, overwrite, experts, base, base_name, config)
    # One task's directions are cut by what they are to that task, and not to the merge.
    chosen = (bank if task is None or format == "merged" else bank.only(task)).truncate(rank_ratio, energy)
    if format in get_args(Program):
        assert network is not None
        export_program(chosen, output, network, cast(Program, format), task, kind, overwrite)
        return []
    if format in get_args(Library):
        models = _models(experts, base, task)
        return export_clip(chosen, output, cast(Library, format), config, models, kind, overwrite)
    if destination(output).suffix in TORCH:
        save_state(output, chosen.merge(dtype=kind, naming=naming), format, overwrite)
        return []
    layout = Layout.of_bank(chosen, names, experts, base, task if format == "task" else None, kind)
    if experts is None and base is None and not is_file(destination(output)):
        say("no configuration next to the weights: --model.experts or --model.base names the models that have it")
    size = shard_size(max_shard_size, output)
    with layout.writing(output, None, size, overwrite, form=format) as writer:
        for name in chosen.origin:
            writer.put(name, chosen.weight(name, kind))
    return writer.copied


def check_export(
    output: str | Path,
    format: str,
    task: str | None = None,
    max_shard_size: str | None = None,
    rest: Rest = "adapter",
    naming: str | None = None,
) -> None:
    """Raises MergeError for options that do not go together, before a bank is built."""
    check_choice("format", format, Format)
    check_choice("rest", rest, Rest)
    if format in ("bank", "lora", *get_args(Library)) and destination(output).suffix in (*SUFFIXES, *PROGRAMS):
        raise MergeError(
            f"{output}: format={format} writes a folder: choose a name without a suffix, or --format merged"
        )
    if format == "task" and task is None:
        raise MergeError("format=task needs --task, one of the bank's tasks")
    if task is not None and format in ("bank", "merged"):
        raise MergeError(f"format={format} is of all tasks: leave task out, or take format=task for {task} alone")
    if rest != "adapter" and format != "lora":
        raise MergeError(f"rest={rest} is of format=lora: leave it out for {format}")
    if naming is not None and format in (*get_args(Library), *get_args(Program)):
        raise MergeError(f"naming={naming}: format={format} says itself what weights are called: leave naming out")
    if max_shard_size is not None:
        if format not in ("merged", "task"):
            raise MergeError(f"max_shard_size is of format=merged and format=task: leave it out for {format}")
        shard_size(max_shard_size, output)
    if format in get_args(Program):
        check_program(output, cast(Program, format))
    if format in ("merged", "task") and destination(output).suffix not in TORCH:
        is_file(destination(output))


def _models(experts: Experts | None, base: Checkpoint | None, task: str | None) -> list[Checkpoint]:
    """Experts and base, in the order in which they are asked for what the bank does not have."""
    whole = {} if experts is None else dict(experts.whole)
    base = experts.whole_base if experts is not None else base
    own = [whole.pop(task)] if task in whole else []
    return [*own, *([] if base is None else [base]), *whole.values()]
