"""Files of training checkpoints: sealed when they are written, looked at before anything is taken from them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_merge.errors import MergeError

OWN = "lit_merge"
"""The key of what this package puts into Lightning's checkpoints."""


def seal(checkpoint: dict[str, Any]) -> None:
    """Puts a digest of all that is in a checkpoint into it, once nothing more comes to it."""
    checkpoint[OWN]["digest"] = digest(checkpoint)


def read_training_checkpoint(path: Path) -> dict[str, Any]:
    """What a fit has saved, on the CPU; code in the file is not run.

    Raises:
        MergeError: there is no file, one of something else, or one that was cut or changed.
    """
    if not path.is_file():
        raise MergeError(f"{path}: no such file")
    try:
        opened = path.open("rb")
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror}") from error
    with opened:
        try:
            found = torch.load(opened, map_location="cpu", weights_only=True)
            own = dict(found[OWN])
        except Exception as error:  # torch.load fails in as many ways as there are other files
            raise MergeError(f"{path} is no checkpoint of a fit (banks go to --model.bank)") from error
    said = own.pop("digest", None)
    if said != digest({**found, OWN: own}):
        raise MergeError(f"{path} was cut or changed after a fit wrote it: take another checkpoint, or fit anew")
    return dict(found)


def check_alike(found: Mapping[str, Tensor], learnt: Mapping[str, Tensor]) -> None:
    """Raises MergeError where a checkpoint holds other things that were learnt than a fit learns: coefficients, masks
    and corrections, by their names in a module."""

    def differ(part: str) -> bool:
        return any(name.startswith(part) for name in found) != any(name.startswith(part) for name in learnt)

    if differ("masks."):
        raise MergeError("this checkpoint is of a fit with other ranks: AdaRank must be on in both, or in neither")
    for name, value in learnt.items():
        if (held := found.get(name)) is not None and held.shape != value.shape:
            what = "correction" if name.startswith("correction.") else "stages"
            raise MergeError(f"this checkpoint is of a fit with other {what}: {name} differs in shape")
    if differ("correction."):
        raise MergeError("this checkpoint is of a fit with another correction: it must be in both, or in neither")


def digest(value: Any) -> str:
    """Of numbers, text and tensors (dtype, shape, values), and of lists and mappings of them."""
    found = hashlib.blake2b(digest_size=16)
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        found.update(b"{")
        for key, one in value.items():
            found.update(f"{key!r}:".encode())
            _add(found, one)
        found.update(b"}")
    elif isinstance(value, list | tuple):
        found.update(b"[")
        for one in value:
            _add(found, one)
        found.update(b"]")
    else:
        found.update(f"{value!r},".encode())
