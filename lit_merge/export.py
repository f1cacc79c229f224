"""What a bank can leave the house as: a smaller bank, merged weights, one task's weights."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from lit_merge.checkpoints import NamingName, write_safetensors
from lit_merge.errors import MergeError
from lit_merge.task_bank import TaskBank

Format = Literal["bank", "merged", "task"]
DType = Literal["float16", "bfloat16", "float32", "float64"]


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
) -> None:
    """Writes a bank in one of the formats.

    Args:
        bank: with the coefficients to use.
        output: a folder for `bank`, a .safetensors file for `merged` and `task`.
        format: `bank`; `merged`, one model for all tasks; `task`, one task's model from the bank (task indexing).
        task: which task, for `task`.
        rank_ratio, energy: cut the bank first, as `TaskBank.truncate`.
        dtype: of what is written; None keeps the bank's precision, and the experts' for weights.
        overwrite: replace what stands there.
        naming: which library's names a CLIP's weights get, or those of a bank's merges; None keeps the experts'.

    Raises:
        MergeError: `task` missing or not in the bank, a share outside (0, 1], a path that cannot be written; no such
            naming, or one that does not have these weights.
    """
    bank = replace(bank, naming=bank.naming_of(naming))
    weights_dtype = None if dtype is None else getattr(torch, dtype)
    if format == "bank":
        compress(bank, rank_ratio, energy, dtype).save(output, overwrite)
        return
    bank = bank.truncate(rank_ratio, energy)
    if format == "merged":
        weights = bank.merge(dtype=weights_dtype)
    elif format != "task":
        raise MergeError(f"format={format!r}: expected bank, merged or task")
    elif task is None:
        raise MergeError(f"format=task needs --task, one of {', '.join(bank.tasks)}")
    else:
        weights = bank.expert(task, weights_dtype)
    write_safetensors(output, weights, {"format": "pt", "lit_merge": format}, overwrite)
