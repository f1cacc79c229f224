"""Which modules of a model an adapter of PEFT's can hold a change of, and how: by the names and shapes of weights."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

# A number in the name of a module: what is around it holds blocks.
_NUMBERED = re.compile(r"(^|\.)\d+(\.|$)")
# What models call their tables of embeddings: the last part of the module's name, and not that of an output layer.
_EMBEDDING = re.compile(r"emb|^(wte|wpe|shared|relative_attention_bias)$")
_OUTPUT = re.compile(r"embed_out$")


class Linear(NamedTuple):
    """A linear layer.

    Attributes:
        module: its name.
        transposed: whether its weight is stored as (in, out), as GPT-2's are.
    """

    module: str
    transposed: bool


class Modules:
    """The modules of a model.

    Args:
        shapes: name → shape of every weight, as the model itself names them.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def linear(self, weight: str) -> Linear | None:
        """The linear layer that this is the matrix of; None where it is no such layer's, or one that PEFT cannot wrap:
        the output projection of a fused attention, whose forward PyTorch never calls."""
        module, _, last = weight.rpartition(".")
        if not module or last != "weight" or len(self.shapes[weight]) != 2:
            return None
        name = module.rpartition(".")[2]
        if (_EMBEDDING.search(name) and not _OUTPUT.search(name)) or self._in_fused(module):
            return None
        return Linear(module, self.transposed)

    def bias(self, weight: str) -> str | None:
        """The linear layer that this is the bias of."""
        module, _, last = weight.rpartition(".")
        matrix = f"{module}.weight"
        return module if last == "bias" and matrix in self.shapes and self.linear(matrix) is not None else None

    def has_bias(self, module: str) -> bool:
        """Whether a linear layer has a bias."""
        return f"{module}.bias" in self.shapes

    def whole(self, weight: str) -> str | None:
        """The module that holds this weight and no block of layers; None where there is none, so that an adapter cannot
        hold the weight: parameters of the model itself."""
        module = weight.rpartition(".")[0]
        if self._in_fused(module):
            module = module.rpartition(".")[0]
        inside = (name.removeprefix(f"{module}.") for name in self.shapes if name.startswith(f"{module}."))
        return None if not module or any(_NUMBERED.search(name) for name in inside) else module

    def weights(self, module: str) -> list[str]:
        """Names of all weights in a module."""
        return [name for name in self.shapes if name.startswith(f"{module}.")]

    @cached_property
    def transposed(self) -> bool:
        """Whether linear layers store (in, out): a bias is then as long as the second side of its matrix."""
        votes = [
            shape[1] == self.shapes[bias][0]
            for name, shape in self.shapes.items()
            if name.endswith(".weight") and len(shape) == 2 and shape[0] != shape[1]
            if len(self.shapes.get(bias := f"{name.removesuffix('weight')}bias", ())) == 1
        ]
        return bool(votes) and sum(votes) > len(votes) / 2

    def _in_fused(self, module: str) -> bool:
        parent, _, last = module.rpartition(".")
        return last == "out_proj" and f"{parent}.in_proj_weight" in self.shapes
