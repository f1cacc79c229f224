"""Safetensors files written one tensor at a time: what is written may be larger than memory."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lit_merge.checkpoints.checkpoint import DTYPES
from lit_merge.checkpoints.writer import replacing
from lit_merge.errors import MergeError

NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What transformers calls them.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_stream(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes tensors as they come, whole or not at all; one at a time is in memory.

    Args:
        path: a file; with `max_shard_bytes` a folder of `model-00001-of-0000N.safetensors` and an index, or of
            `model.safetensors` where one file is enough, which transformers loads.
        tensors: names and values, in any order.
        shapes: of all of them, known beforehand: the header comes first.
        dtypes: likewise.
        max_shard_bytes: of tensors in one file. A larger tensor has a file of its own.
        metadata: texts for the header.
        overwrite: replace what stands there.

    Raises:
        MergeError: the path exists or cannot be written, or the disk is full.
        ValueError: tensors that are not those that were announced.
    """
    with replacing(path, overwrite) as beside:
        if max_shard_bytes is None:
            files: dict[Path, Sequence[str]] = {beside: list(shapes)}
        else:
            beside.mkdir()
            files = _name_shards(beside, _split(shapes, dtypes, max_shard_bytes))
        with ExitStack() as stack:
            _fill(stack, files, tensors, shapes, dtypes, metadata or {"format": "pt"})
        if len(files) > 1:
            total = sum(_nbytes(shapes[name], dtypes[name]) for name in shapes)
            weight_map = {name: file.name for file, names in files.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (beside / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _fill(
    stack: ExitStack,
    files: Mapping[Path, Sequence[str]],
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
) -> None:
    places: dict[str, tuple[BinaryIO, int]] = {}
    for path, names in files.items():
        header, starts = make_header(names, shapes, dtypes, metadata)
        file: BinaryIO = stack.enter_context(path.open("wb"))
        file.write(header)
        places |= {name: (file, len(header) + start) for name, start in starts.items()}
    for name, value in tensors:
        file, start = places.pop(name)
        if tuple(value.shape) != shapes[name] or value.dtype != dtypes[name]:
            raise ValueError(f"{name} is {list(value.shape)} of {value.dtype}, announced as {list(shapes[name])}")
        file.seek(start)
        file.write(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if places:
        raise ValueError(f"{min(places)} was announced and did not come")


def make_header(
    names: Iterable[str],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a safetensors file, and where tensors begin after them. The widest dtypes come first, so that
    every tensor begins at a multiple of its own width."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    starts, end = {}, 0
    for name in sorted(names, key=lambda name: (-dtypes[name].itemsize, name)):
        if dtypes[name] not in NAMES:
            raise MergeError(f"{name} is of dtype {dtypes[name]}, which safetensors files of weights do not hold")
        starts[name], end = end, end + _nbytes(shapes[name], dtypes[name])
        header[name] = {
            "dtype": NAMES[dtypes[name]],
            "shape": list(shapes[name]),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def _split(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = _nbytes(shape, dtypes[name])
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def _name_shards(folder: Path, shards: Sequence[Sequence[str]]) -> dict[Path, Sequence[str]]:
    count = len(shards)
    if count == 1:
        return {folder / SINGLE: shards[0]}
    return {folder / f"model-{i:05d}-of-{count:05d}.safetensors": names for i, names in enumerate(shards, 1)}


def _nbytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
