"""Checkpoints read lazily: names, shapes and dtypes from the header, one tensor at a time from the file."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_merge.errors import MergeError
from lit_merge.locations import resolve

# What transformers calls the weights in the folder of a model.
WEIGHTS = "model.safetensors"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Bytes; what safetensors allows. Other files name lengths beyond it in their first eight bytes.
LONGEST_HEADER = 100_000_000


class Checkpoint(ABC):
    """Named tensors. `label` says in messages where they come from."""

    label: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    nbytes: int

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor of this name, of shape `shapes[name]` and dtype `dtypes[name]`, on the CPU."""


Source = str | os.PathLike[str] | Mapping[str, Tensor] | Checkpoint


class StateDict(Checkpoint):
    """Weights that are in memory already."""

    def __init__(self, weights: Mapping[str, Tensor], label: str = "state dict") -> None:
        for name, value in weights.items():
            if not isinstance(value, Tensor):
                raise MergeError(f"{label}: {name} is a {type(value).__name__}, expected a tensor", weight=str(name))
        self.label = label
        self.weights = weights
        self.shapes = {name: tuple(value.shape) for name, value in weights.items()}
        self.dtypes = {name: value.dtype for name, value in weights.items()}
        self.nbytes = sum(value.nbytes for value in weights.values())

    def read(self, name: str) -> Tensor:
        # A copy: a bank must not follow a model whose `state_dict()` it was built from.
        return self.weights[name].detach().clone()


class SafetensorsFile(Checkpoint):
    """One safetensors file. Opening it reads and checks the header only; `read` maps one tensor from the file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.label = str(path)
        header = read_header(self.path)
        try:
            self._file = safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise MergeError(f"{path} is damaged: {error}") from error
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        unknown = next((name for name, entry in header.items() if entry["dtype"] not in DTYPES), None)
        if unknown is not None:
            raise MergeError(f"{path}: {unknown} is of dtype {header[unknown]['dtype']}, which cannot be merged")
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self.dtypes = {name: DTYPES[entry["dtype"]] for name, entry in header.items()}
        self.nbytes = self.path.stat().st_size

    def read(self, name: str) -> Tensor:
        try:
            return self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise MergeError(f"{self.path}: could not read {name}: {error}", weight=name) from error


def read_header(path: Path) -> dict[str, dict]:
    """The header of a safetensors file, checked against the file's size.

    Raises:
        MergeError: missing, unreadable, empty, a Git LFS pointer, another format, or cut short.
    """
    try:
        if path.is_dir():
            raise MergeError(f"{path} is a folder, expected a .safetensors file")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if size == 0:
                raise MergeError(f"{path} is empty (0 bytes), expected a safetensors file: copy or download it again")
            if start.startswith(b"version "):
                raise MergeError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` beside it")
            length = int.from_bytes(start, "little")
            # Not by the first bytes alone: a header of 1,152 bytes begins as a pickle does.
            if length > LONGEST_HEADER and start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
                raise MergeError(
                    f"{path} is a PyTorch pickle, not a safetensors file: load it with torch.load(weights_only=True) "
                    "and write it with safetensors.torch.save_file"
                )
            text = file.read(length) if length <= LONGEST_HEADER else b""
    except FileNotFoundError as error:
        raise MergeError(f"{path}: no such file") from error
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror}") from error
    if text[:1] == b"{" and len(text) < length:
        raise cut_short(path, 8 + length, size)
    try:
        header = json.loads(text)
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise MergeError(f"{path} is not a safetensors file, or its header is damaged") from error
    if size < 8 + length + end:
        raise cut_short(path, 8 + length + end, size)
    return header


def cut_short(path: Path, expected: int, size: int) -> MergeError:
    return MergeError(f"{path} is cut short: {size:,} bytes of {expected:,}: copy or download it again")


def open_checkpoint(source: Source, label: str = "state dict") -> Checkpoint:
    """A checkpoint from a path (`zoo:8/…` names files of the built-in suite), from the folder of a transformers model,
    or from a state dict; one that is open already is itself.

    Raises:
        MergeError: the file is missing or is no whole safetensors file.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return StateDict(source, label)
    path = resolve(source)
    return SafetensorsFile(path / WEIGHTS if (path / WEIGHTS).is_file() else path)
