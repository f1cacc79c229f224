"""Tensors of PyTorch files as plain values: where they lie in which storage. Nothing is read or made of torch here."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from lit_merge.checkpoints.checkpoint import LARGEST_EMPTY
from lit_merge.checkpoints.pickle.stand_ins import Damaged, Name

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
}
# An expanded tensor holds more values than its storage. This many at most: a file of a few bytes must not ask for all
# memory there is.
MOST_EXPANDED = 1 << 24
MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class Storage:
    """Values that lie in the file one after the other. `dtype` is None for bytes that a tensor gives its own dtype."""

    key: str
    dtype: torch.dtype | None
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * (1 if self.dtype is None else self.dtype.itemsize)


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A tensor: a view of a storage. `offset` and `stride` count values, not bytes."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    @property
    def span(self) -> int:
        """Number of values from its first to its last."""
        if self.numel == 0:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))


def make_storage(found: Any) -> Storage:
    """The storage of a persistent id `("storage", class, key, device, numel)`.

    Raises:
        Damaged: it is none, or of a kind that holds no weights.
    """
    wellformed = isinstance(found, tuple) and len(found) in (5, 6) and found[0] in ("storage", b"storage")
    # Files of the old format have a sixth: storages that are views of others, which torch does not write any more.
    if not wellformed or not isinstance(found[1], Name) or (len(found) == 6 and found[5] is not None):
        raise Damaged("its pickle refers to something that is no storage")
    kind, key, numel = found[1], found[2], found[4]
    if not isinstance(key, str) or not _counts(numel):
        raise Damaged("its pickle refers to a storage without a name or a size")
    if kind.module not in ("torch", "torch.cuda", "torch.storage") or kind.name not in STORAGES:
        raise Damaged("its pickle refers to a storage of a kind that holds no weights")
    return Storage(key, STORAGES[kind.name], numel)


def rebuild(function: Name, args: tuple[Any, ...]) -> TensorRecord | None:
    """The tensor that torch's function of this name would make of the arguments; None for another function.

    Raises:
        Damaged: a tensor that reaches beyond its storage, or arguments of another kind.
    """
    if function in PARAMETERS and args and isinstance(args[0], TensorRecord):
        return args[0]
    if function not in REBUILDS:
        return None
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise Damaged("its pickle makes a tensor of something that is no storage")
    storage, offset, size, stride = args[:4]
    dtype: object = storage.dtype
    if function.name == "_rebuild_tensor_v3":
        # Not by getattr: torch imports modules of its own where it is asked for them by name.
        dtype = vars(torch).get(args[6].name) if len(args) > 6 and isinstance(args[6], Name) else None
    return _checked(storage, dtype, offset, size, stride)


def _checked(storage: Storage, dtype: object, offset: Any, size: Any, stride: Any) -> TensorRecord:
    if not (isinstance(size, list | tuple) and isinstance(stride, list | tuple) and isinstance(dtype, torch.dtype)):
        raise Damaged("its pickle makes a tensor without a shape or a dtype")
    wellformed = len(size) == len(stride) <= MOST_DIMENSIONS and all(map(_counts, (offset, *size, *stride)))
    if not wellformed or (0 in size and math.prod(max(n, 1) for n in size) > LARGEST_EMPTY):
        raise Damaged("its pickle makes a tensor of an impossible shape")
    tensor = TensorRecord(storage, dtype, offset, tuple(size), tuple(stride))
    if tensor.numel and (tensor.offset + tensor.span) * dtype.itemsize > storage.nbytes:
        raise Damaged(f"a tensor of shape {list(tensor.size)} reaches beyond its storage")
    if tensor.numel * dtype.itemsize > max(storage.nbytes, MOST_EXPANDED):
        raise Damaged(f"a tensor of shape {list(tensor.size)} is larger than its storage")
    return tensor


def _counts(value: Any) -> bool:
    """Whether it is a number of values; numbers of hundreds of digits are none, and are slow to write out."""
    return type(value) is int and 0 <= value < 1 << 62


REBUILDS = {Name("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
PARAMETERS = {Name("torch._utils", name) for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
