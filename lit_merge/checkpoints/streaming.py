"""Safetensors files written one tensor at a time: what is written may be larger than memory."""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import BinaryIO

import torch
from torch import Tensor

from lit_merge.checkpoints.tensor_files import TensorFiles, bytes_of, check_written
from lit_merge.checkpoints.writer import replacing


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
        MergeError: the path exists or cannot be written, or the disk is full; a value that is not finite.
        ValueError: tensors that are not those that were announced.
    """
    with replacing(path, overwrite) as beside, ExitStack() as stack:
        files = TensorFiles(shapes, dtypes, max_shard_bytes, metadata)
        files.create(beside)
        opened: dict[str, BinaryIO] = {}
        missing = set(shapes)
        for name, value in tensors:
            check_written(name, value)
            file, position = files.place(name, value)
            if file not in opened:
                opened[file] = stack.enter_context((beside / file if file else beside).open("r+b"))
            opened[file].seek(position)
            opened[file].write(bytes_of(value))
            missing.discard(name)
        if missing:
            raise ValueError(f"{min(missing)} was announced and did not come")
