"""Checksums of a bank's tensors, one for each part that is read alone: what was damaged is seen when it is read, and
opening a bank reads none of it."""

import zlib

from torch import Tensor

from lit_merge.checkpoints.tensor_values import bytes_of

# Digits of one checksum.
WIDTH = 8
# Tensors with a part for each task, by the first part of their names.
PARTED = ("U", "S", "V", "delta")


def checksums(name: str, value: Tensor) -> str:
    """CRC-32 of the tensor of this name in a bank's file, in eight digits; of those with a part for each task, of every
    part, one after the other.

    >>> checksums("origin/w", torch.zeros(1)), checksums("U/w", torch.zeros(2, 1))
    ('2144df1c', '2144df1c2144df1c')
    """
    parts = value.unbind() if name.partition("/")[0] in PARTED else [value]
    return "".join(f"{zlib.crc32(bytes_of(part)):08x}" for part in parts)
