"""What stands before the values of a safetensors file, and which tensors go into which of several files."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from lit_merge.checkpoints.checkpoint import DTYPES
from lit_merge.errors import MergeError

NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What transformers calls them.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


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
        starts[name], end = end, end + nbytes_of(shapes[name], dtypes[name])
        header[name] = {
            "dtype": NAMES[dtypes[name]],
            "shape": list(shapes[name]),
            "data_offsets": [starts[name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def split_into_shards(
    shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype], limit: int
) -> list[list[str]]:
    """Names, in files of so many bytes of tensors at most; a larger tensor has a file of its own."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = nbytes_of(shape, dtypes[name])
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def name_shards(shards: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    """Names by the file that transformers looks for them in."""
    count = len(shards)
    if count == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{count:05d}.safetensors": names for i, names in enumerate(shards, 1)}


def nbytes_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Of the values of a tensor."""
    return math.prod(shape) * dtype.itemsize
