"""Safetensors files: names, shapes and dtypes from the header, one tensor at a time from the file."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_merge.checkpoints.checkpoint import DTYPES, LARGEST_EMPTY, Checkpoint, unfit_dtypes
from lit_merge.checkpoints.checksums import Checksums
from lit_merge.checkpoints.input_file import LONGEST_TEXT, InputFile
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.errors import MergeError

# Bytes; what safetensors allows. Other files name lengths beyond it in their first eight bytes.
LONGEST_HEADER = LONGEST_TEXT
LARGEST, MOST_DIMENSIONS = 1 << 62, 64
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64} | {
    name: bits
    for bits, names in {
        8: "U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
        16: "I16 U16 F16 BF16",
        32: "I32 U32 F32",
        64: "I64 U64 F64",
    }.items()
    for name in names.split()
}
"""Bytes of one value, by the dtypes that safetensors files have."""


class SafetensorsFile(Checkpoint):
    """One safetensors file. Opening it reads and checks the header only; where it has checksums, a tensor is looked at
    the first time that it is read.

    Args:
        path: of the file.
        lenient: leave out what cannot be merged, rather than refuse the file: see `Checkpoint.unfit`.
    """

    def __init__(self, path: str | os.PathLike[str] | InputFile, lenient: bool = False) -> None:
        file = path if isinstance(path, InputFile) else InputFile(Path(path), "a safetensors file")
        self.path, self.file = file.path, file
        self.label = str(file.path)
        self.inputs = (file,)
        header, begin = read_header(file)
        metadata: dict[str, str] = header.pop("__metadata__", {})
        self.unfit = unfit_dtypes({name: entry["dtype"] for name, entry in header.items()})
        self.refuse_unfit(() if lenient else self.unfit)
        header = {name: entry for name, entry in header.items() if name not in self.unfit}
        self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        self.dtypes = {name: DTYPES[entry["dtype"]] for name, entry in header.items()}
        self._checksums = Checksums(self.path, metadata, self.shapes, self.dtypes)
        self.metadata = metadata
        self.nbytes = file.size
        self._starts = {name: begin + entry["data_offsets"][0] for name, entry in header.items()}

    def read(self, name: str) -> Tensor:
        """In memory of its own: pages of a mapped file would count as the process's, in the end those of all files."""
        if name not in self.shapes:
            raise MergeError(f"{self.path} has no tensor {name}", weight=name)
        value = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        self.read_into(name, value)
        self._checksums.check(name, value)
        return value

    def read_into(self, name: str, out: Tensor, row: int = 0) -> None:
        if out.numel():
            start = self._starts[name] + row * math.prod(self.shapes[name][1:]) * out.itemsize
            self.file.read_into(start, out.view(-1).view(torch.uint8).numpy().data, name)


def starts_safetensors(start: bytes) -> bool:
    """Whether a file that begins so is one of safetensors: a length, and the header's first brace."""
    return int.from_bytes(start[:8], "little") <= LONGEST_HEADER and start[8:9] == b"{"


def read_header(file: InputFile) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, checked against the file's size, and where values begin.

    Raises:
        MergeError: unreadable, empty, a Git LFS pointer, another format, cut short, or not what its header says.
    """
    start, path = file.start("a safetensors file"), file.path
    length = int.from_bytes(start[:8], "little")
    # Not by the first bytes alone: a header of 1,152 bytes begins as a pickle does.
    if length > LONGEST_HEADER and start[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise MergeError(
            f"{path} is a PyTorch pickle, not a safetensors file: "
            "`lit-merge convert` makes one of what torch.save wrote"
        )
    text = file.read(8, length) if length <= LONGEST_HEADER else b""
    if text[:1] == b"{" and len(text) < length:
        raise cut_short(path, 8 + length, file.size)
    try:
        header = parse_json(text)
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        short = file.size < 8 + length + end
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise MergeError(f"{path} is not a safetensors file, or its header is damaged") from error
    if short:
        raise cut_short(path, 8 + length + end, file.size)
    if wrong := _wrong(header, file.size - 8 - length):
        raise MergeError(f"{path} is damaged: {wrong}")
    return header, 8 + length


def _wrong(header: dict[str, Any], size: int) -> str | None:
    """What of a header is not as in safetensors files: values lie one after the other, without holes, up to the end."""
    texts = header.get("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        return "its metadata are no texts"
    extents = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, offsets, dtype = entry.get("shape"), entry["data_offsets"], entry.get("dtype")
        listed = isinstance(shape, list) and isinstance(offsets, list)
        numbers = [*shape, *offsets] if listed else []
        if (
            not listed
            or len(offsets) != 2
            or len(shape) > MOST_DIMENSIONS
            or not all(type(number) is int and 0 <= number < LARGEST for number in numbers)
        ):
            return f"the shape or the place of {name[:100]} is none"
        if not isinstance(dtype, str) or dtype not in BITS:
            return f"{name[:100]} is of a dtype that safetensors files do not know"
        if BITS[dtype] * math.prod(shape) != 8 * (offsets[1] - offsets[0]):
            return f"{name[:100]} does not take as many bytes as its shape {shape[:20]} of {dtype} needs"
        if offsets[0] == offsets[1] and math.prod(max(n, 1) for n in shape) > LARGEST_EMPTY:
            return f"{name[:100]} has the impossible shape {shape[:20]}"
        extents.append(offsets)
    end = 0
    for begin, after in sorted(extents):
        if begin != end:
            return "its values overlap, or there are holes between them"
        end = after
    return None if end == size else f"it has {size - end:,} bytes behind its last value"


def cut_short(path: Path, expected: int, size: int) -> MergeError:
    return MergeError(f"{path} is cut short: {size:,} bytes of {expected:,}: copy or download it again")
