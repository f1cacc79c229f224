"""Weights as a plain state dict in a file of `torch.save`."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_merge.checkpoints import replacing
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.safetensors_writer import check_held

TORCH = (".pt", ".pth")
# A record that says whose the file is; torch.load passes it over.
_RECORD = "lit_merge"


def save_state(output: str | Path, weights: Mapping[str, Tensor], form: str, overwrite: bool = False) -> None:
    """Writes {name: tensor}, whole or not at all; all weights are in memory.

    Args:
        output: a file.
        weights: by the names that the file gets.
        form: `merged` or `task`.
        overwrite: replace what stands there, if `export` wrote it.

    Raises:
        MergeError: a path that cannot be written; a value that is not finite.
    """
    for name, value in weights.items():
        check_held(name, value)
    with replacing(output, overwrite, Kind(f"export --format {form}", _is_one)) as draft:
        # Parts of one tensor, as of a fused attention, would each be saved with all of it.
        torch.save({name: value.clone() for name, value in weights.items()}, draft)
        with zipfile.ZipFile(draft, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(f"{root}/{_RECORD}", form)


def _is_one(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2] == _RECORD for name in archive.namelist())
