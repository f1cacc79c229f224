"""Checksums of a bank's tensors, one for each part that is read alone: what was damaged is seen when it is read, and
opening a bank reads none of it."""

from torch import Tensor

from lit_merge.bank.learnt import is_learnt
from lit_merge.checkpoints.tensor_values import checksum

# Digits of one checksum.
WIDTH = 8
# Tensors with a part for each task, by the first part of their names.
PARTED = ("U", "S", "V", "delta")


def checksums(name: str, value: Tensor) -> str:
    """The checksum of the tensor of this name in a bank's file; of those with a part for each task, of every part, one
    after the other."""
    return "".join(map(checksum, value.unbind() if parts(name, value) > 1 else [value]))


def parts(name: str, value: Tensor) -> int:
    """How many checksums a tensor of this name has."""
    return len(value) if name.partition("/")[0] in PARTED else 1


def is_summed(name: str) -> bool:
    """Whether it has any: what adaptation changes is in the digest of the description."""
    return name != "coefficients" and not is_learnt(name)


def sum_at(sums: str, row: int) -> str:
    """The checksum of one part."""
    return sums[row * WIDTH : (row + 1) * WIDTH]
