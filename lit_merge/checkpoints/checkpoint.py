"""What every format is read as: named tensors, known by shape and dtype before one of them is read."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.naming import PLAIN, Naming
from lit_merge.checkpoints.updates import Update
from lit_merge.errors import MergeError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes of weights, by their names in safetensors headers."""
LARGEST_EMPTY = 1 << 31
"""Of weights without a value, the product of the dimensions next to the 0. None of a model comes near it, and what goes
through rows would never end."""
FIT = {*DTYPES, *DTYPES.values()}


ACTIVATION = "activation"
"""Key of the metadata of a whole module: `quick_gelu` or `gelu`, in the words of transformers."""


class Checkpoint(ABC):
    """Named tensors.

    Attributes:
        label: says in messages where they come from.
        inputs: the files that they are read from; none where they are in memory.
        metadata: texts that the file carries with the tensors.
        nbytes: of all tensors, or of the file that holds nothing else.
        tied: groups of names, as in the file, of one and the same values; of files that say so.
        naming: how the file names the weights, relative to the names here.
        unfit: what cannot be merged, as the file calls it, and what it is: entries that are no tensors, and dtypes such
            as complex64 or float8. It is in none of the others; only who leaves it out may open a file that has some.
    """

    label: str
    inputs: tuple[InputFile, ...] = ()
    metadata: Mapping[str, str] = {}
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    nbytes: int
    tied: tuple[tuple[str, ...], ...] = ()
    naming: Naming = PLAIN
    unfit: Mapping[str, str] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """Paths of the files that they are read from."""
        return tuple(file.path for file in self.inputs)

    def refuse_unfit(self, names: Iterable[str], way_out: str = "") -> None:
        """Raises MergeError where one of these names is of what cannot be merged; `{name}` stands in the way out."""
        for name in names:
            if name in self.unfit:
                message = f"{self.label}: {name} is {self.unfit[name]}{way_out.format(name=name)}"
                raise MergeError(message, weight=name)

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor of this name, of shape `shapes[name]` and dtype `dtypes[name]`, on the CPU."""

    def read_into(self, name: str, out: Tensor, row: int = 0) -> None:
        """Reads a weight into a contiguous tensor of its dtype: as many rows as `out` has, from `row` on. Formats
        that can read some rows alone read no others."""
        value = self.read(name)
        out.copy_(value[row : row + len(out)] if value.ndim else value)

    def is_updated(self, name: str) -> bool:
        """Whether the weight of this name is the base's with a low-rank update in it."""
        return False

    def update(self, name: str) -> Update | None:
        """What is added to the base's weight of this name, exactly: `read` rounds the sum. None where the weight is not
        known as a sum."""
        return None

    def name_of(self, weight: str) -> str:
        """What the file itself calls a weight of this name, for messages."""
        return weight


Source = str | os.PathLike[str] | Mapping[str, Tensor] | Checkpoint


class StateDict(Checkpoint):
    """Weights that are in memory already."""

    def __init__(self, weights: Mapping[str, Tensor], label: str = "state dict", lenient: bool = False) -> None:
        self.label = label
        self.unfit = {
            str(name): f"a {type(value).__name__}, expected a tensor"
            for name, value in weights.items()
            if not isinstance(value, Tensor)
        } | unfit_dtypes({name: value.dtype for name, value in weights.items() if isinstance(value, Tensor)})
        self.refuse_unfit(() if lenient else self.unfit)
        self.weights = weights = {name: value for name, value in weights.items() if str(name) not in self.unfit}
        self.shapes = {name: tuple(value.shape) for name, value in weights.items()}
        self.dtypes = {name: value.dtype for name, value in weights.items()}
        self.nbytes = sum(value.nbytes for value in weights.values())

    def read(self, name: str) -> Tensor:
        # A copy: a bank must not follow a model whose `state_dict()` it was built from.
        return self.weights[name].detach().clone()


def unfit_dtypes(dtypes: Mapping[str, object]) -> dict[str, str]:
    """Which of these weights cannot be merged for their dtype, and what is said of them."""
    return {name: f"of dtype {dtype}, which cannot be merged" for name, dtype in dtypes.items() if dtype not in FIT}
