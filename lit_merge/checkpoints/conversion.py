"""A checkpoint of any format as safetensors."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lit_merge.checkpoints import (
    Checkpoint,
    Named,
    NamingName,
    Source,
    canonical,
    check_output,
    named,
    open_checkpoint,
    write_stream,
)
from lit_merge.checkpoints.checkpoint import ACTIVATION
from lit_merge.checkpoints.folders import SUFFIXES
from lit_merge.checkpoints.inputs import check_apart
from lit_merge.checkpoints.safetensors_writer import MARK, written_weights
from lit_merge.checkpoints.tensor_values import is_finite
from lit_merge.console import track_bytes
from lit_merge.errors import MergeError

DType = Literal["float16", "bfloat16", "float32", "float64"]
CONVERTED = written_weights("convert", "converted")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def convert(
    source: Source,
    output: str | os.PathLike[str],
    dtype: DType | None = None,
    base: Source | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    naming: NamingName | None = None,
) -> Checkpoint:
    """Writes a checkpoint as safetensors, whole or not at all; one weight at a time is in memory.

    Args:
        source: what `open_checkpoint` takes.
        output: a .safetensors file, or a folder with `max_shard_bytes`.
        dtype: of floating-point weights; None leaves them as they are.
        base: what a LoRA adapter was trained on.
        max_shard_bytes: of weights in one file.
        overwrite: replace what stands there.
        naming: whose names the weights of a CLIP get; None leaves them as they are.

    Returns:
        What was read, by the names that were written.

    Raises:
        MergeError: a source that cannot be read, an output that cannot be written, a value that the dtype cannot hold;
            a naming for a model that is no CLIP, or that lacks its weights.
    """
    if max_shard_bytes is not None:
        _check_folder(output)
    elif Path(output).suffix != ".safetensors":
        raise MergeError(f"{output}: expected a name that ends in .safetensors, or --max_shard_size for a folder")
    target = check_output(output, overwrite, CONVERTED)
    held = open_checkpoint(source, base=None if base is None else open_checkpoint(base, "base"))
    check_apart(target, held.files)
    if naming is not None:
        held = canonical(held)
        held = Named(held, named(naming, held.shapes))
    wanted = None if dtype is None else getattr(torch, dtype)
    dtypes = {name: wanted if wanted and kind.is_floating_point else kind for name, kind in held.dtypes.items()}
    # A whole module's activation, which no weight shows.
    about = {"format": "pt", MARK: "converted"} | {k: v for k, v in held.metadata.items() if k == ACTIVATION}
    values = _cast(held, dtypes)
    write_stream(output, values, held.shapes, dtypes, max_shard_bytes, about, overwrite, CONVERTED)
    return held


def _cast(held: Checkpoint, dtypes: dict[str, torch.dtype]) -> Iterator[tuple[str, Tensor]]:
    sizes = {name: torch.Size(shape).numel() * dtypes[name].itemsize for name, shape in held.shapes.items()}
    for name in track_bytes(sizes, "converting"):
        value = held.read(name)
        if not is_finite(value):
            raise MergeError(f"{held.label}: {name} holds NaN or infinity: it is not converted", weight=name)
        cast = value.to(dtypes[name])
        if not is_finite(cast):
            raise MergeError(
                f"{held.label}: {name} has values that {dtypes[name]} cannot hold: take bfloat16", weight=name
            )
        yield name, cast


def shard_size(text: str | None, output: str | os.PathLike[str]) -> int | None:
    """Bytes of one file in the folder that is written; None where the option `max_shard_size` is not given.

    Raises:
        MergeError: another text than a size; an output that is one file, and so would be larger.
    """
    if text is None:
        return None
    size = parse_size(text)
    _check_folder(output)
    return size


def _check_folder(output: str | os.PathLike[str]) -> None:
    if Path(output).suffix in SUFFIXES:
        raise MergeError(f"{output} is one file, and max_shard_size is of a folder: choose a name without a suffix")


def parse_size(text: str, option: str = "max_shard_size") -> int:
    """Bytes of `5GB`, `500MB` or `1000000`.

    Raises:
        MergeError: another text, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip().upper())
    unit = match and match.group(2).removesuffix("B")
    size = int(float(match.group(1)) * UNITS[f"{unit}B" if unit else ""]) if match else 0
    if size < 1:
        raise MergeError(f"{option} is {text!r}, expected a size such as 5GB or 500MB")
    return size
