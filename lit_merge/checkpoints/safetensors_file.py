"""Safetensors files: names, shapes and dtypes from the header, one tensor at a time from the file."""

import functools
import math
import os
import weakref
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_merge.checkpoints.checkpoint import DTYPES, Checkpoint, first_bytes, unfit_dtypes
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.errors import MergeError

# Bytes; what safetensors allows. Other files name lengths beyond it in their first eight bytes.
LONGEST_HEADER = 100_000_000


class SafetensorsFile(Checkpoint):
    """One safetensors file. Opening it reads and checks the header only.

    Args:
        path: of the file.
        lenient: leave out what cannot be merged, rather than refuse the file: see `Checkpoint.unfit`.
    """

    def __init__(self, path: str | os.PathLike[str], lenient: bool = False) -> None:
        self.path = Path(path)
        self.label = str(path)
        self.files = (self.path,)
        header = read_header(self.path)
        try:
            # Checks more of the header than `read_header`. For torch it would map the whole file for writing.
            with safe_open(self.path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise MergeError(f"{path} is damaged: {error}") from error
        self.metadata = header.pop("__metadata__", {})
        self.unfit = unfit_dtypes({name: entry["dtype"] for name, entry in header.items()})
        self.refuse_unfit(() if lenient else self.unfit)
        header = {name: entry for name, entry in header.items() if name not in self.unfit}
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self.dtypes = {name: DTYPES[entry["dtype"]] for name, entry in header.items()}
        self.nbytes = self.path.stat().st_size
        begin = 8 + int.from_bytes(first_bytes(self.path, "a safetensors file")[:8], "little")
        self._starts = {name: begin + entry["data_offsets"][0] for name, entry in header.items()}

    def read(self, name: str) -> Tensor:
        """In memory of its own: pages of a mapped file would count as the process's, in the end those of all files."""
        value = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        self.read_into(name, value)
        return value

    def read_into(self, name: str, out: Tensor, row: int = 0) -> None:
        if not out.numel():
            return
        try:
            with self.path.open("rb") as file:
                file.seek(self._starts[name] + row * math.prod(self.shapes[name][1:]) * out.itemsize)
                found = file.readinto(out.view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise MergeError(f"{self.path}: could not read {name}: {error}", weight=name) from error
        if found < out.nbytes:
            raise MergeError(f"{self.path}: could not read {name}: the file ends before it", weight=name)

    def map(self, name: str) -> Tensor:
        """A weight, mapped from the file: it stays on disk until it is used, and leaves memory with the tensor."""
        if name not in self.shapes:
            raise MergeError(f"{self.path} has no tensor {name}", weight=name)
        try:
            storage = torch.UntypedStorage.from_file(self._held, shared=False, nbytes=self.nbytes)
        except (RuntimeError, OSError):
            # As where the file is larger than memory and swap together.
            return self.read(name)
        start, shape, dtype = self._starts[name], self.shapes[name], self.dtypes[name]
        part = storage[start : start + math.prod(shape) * dtype.itemsize]
        return torch.empty(0, dtype=dtype).set_(part).view(shape)

    @functools.cached_property
    def _held(self) -> str:
        """A path to the file that is there at the first time, whatever takes its place afterwards."""
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        path = f"/dev/fd/{descriptor}"
        return path if os.path.exists(path) else str(self.path)


def starts_safetensors(start: bytes) -> bool:
    """Whether a file that begins so is one of safetensors: a length, and the header's first brace."""
    return int.from_bytes(start[:8], "little") <= LONGEST_HEADER and start[8:9] == b"{"


def read_header(path: Path) -> dict[str, dict]:
    """The header of a safetensors file, checked against the file's size.

    Raises:
        MergeError: missing, unreadable, empty, a Git LFS pointer, another format, or cut short.
    """
    start = first_bytes(path, "a safetensors file")
    length = int.from_bytes(start[:8], "little")
    # Not by the first bytes alone: a header of 1,152 bytes begins as a pickle does.
    if length > LONGEST_HEADER and start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise MergeError(
            f"{path} is a PyTorch pickle, not a safetensors file: "
            "`python -m lit_merge convert` makes one of what torch.save wrote"
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(8)
            text = file.read(length) if length <= LONGEST_HEADER else b""
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror}") from error
    if text[:1] == b"{" and len(text) < length:
        raise cut_short(path, 8 + length, size)
    try:
        header = parse_json(text)
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise MergeError(f"{path} is not a safetensors file, or its header is damaged") from error
    if size < 8 + length + end:
        raise cut_short(path, 8 + length + end, size)
    return header


def cut_short(path: Path, expected: int, size: int) -> MergeError:
    return MergeError(f"{path} is cut short: {size:,} bytes of {expected:,}: copy or download it again")
