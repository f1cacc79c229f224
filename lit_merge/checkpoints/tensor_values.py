"""Values of tensors: as files hold them, and whether they are numbers."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lit_merge.errors import MergeError


def is_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinity."""
    return not value.is_floating_point() or not value.numel() or all(end.isfinite() for end in value.aminmax())


def check_held(name: str, value: Tensor) -> None:
    """Raises MergeError where a value that was computed is not finite."""
    if value.is_meta or is_finite(value):
        return
    bad, most = value.numel() - int(value.isfinite().sum()), torch.finfo(value.dtype).max
    way_out = "a smaller scaling, or smaller steps of adaptation"
    if value.dtype == torch.float16:
        way_out = "a wider --dtype, as bfloat16 or float32, or a smaller scaling"
    raise MergeError(
        f"{name} would hold NaN or infinity in {bad:,} of {value.numel():,} places; {value.dtype} holds "
        f"numbers up to {most:.4g}: take {way_out}",
        weight=name,
    )


def bytes_of(value: Tensor) -> memoryview:
    """A tensor's values as files hold them."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_values(path: Path, position: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The tensor whose values begin there.

    Raises:
        OSError: the file cannot be read, or ends before they do.
    """
    value = torch.empty(tuple(shape), dtype=dtype)
    data = bytes_of(value)
    with path.open("rb", buffering=0) as file:
        file.seek(position)
        while data:
            if not (count := file.readinto(data)):
                raise OSError(f"{path} ends before its values do")
            data = data[count:]
    return value


def checksum(*values: Tensor) -> str:
    """CRC-32 of the bytes of tensors, one after the other, in eight digits.

    >>> checksum(torch.zeros(1))
    '2144df1c'
    """
    found = 0
    for value in values:
        found = zlib.crc32(bytes_of(value), found)
    return f"{found:08x}"
