"""Products of inputs with weights, seen while a network runs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Where products take the inputs and the weight from; a linear layer's weight comes as it is, others' transposed.
PRODUCTS = {
    aten.linear.default: (0, 1),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}


class WatchedProducts(TorchDispatchMode, ABC):
    """Sees every use of a weight as y = x·Wᵀ while this is active.

    It watches products rather than modules: fused attention hands its weights to functions, and no module's forward
    is ever called with them. A weight used as x·W, or not as one matrix, is left out; rows of a weight (a fused one
    that is taken apart) count as the weight.

    Args:
        weights: name → weight; those of two dimensions are watched, each in memory of its own.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.shapes = {name: tuple(w.shape) for name, w in weights.items() if w.ndim == 2 and w.is_floating_point()}
        self.names = {weights[name].untyped_storage().data_ptr(): name for name in self.shapes}

    @abstractmethod
    def seen(
        self, name: str, first: int, inputs: Float[Tensor, "R n"], outputs: Float[Tensor, "*R m"]
    ) -> Float[Tensor, "*R m"]:
        """What becomes of the outputs of some rows of a weight.

        Args:
            name: of the weight.
            first: the first of its rows that were used.
            inputs: one row for every product.
            outputs: of the operation; reshaped to (R, m) they are in the order of the inputs.
        """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            inputs, weight = (args[i] for i in PRODUCTS[func])
            weight = weight if func is aten.linear.default else weight.mT
            if (name := self._name(weight)) is not None:
                first = weight.storage_offset() // max(1, self.shapes[name][1])
                return self.seen(name, first, inputs.reshape(-1, inputs.shape[-1]), found)
        return found

    def _name(self, weight: Float[Tensor, "*B m n"]) -> str | None:
        """The weight of which this is a view, whole or some rows, not transposed."""
        name = self.names.get(weight.untyped_storage().data_ptr())
        if name is None or weight.shape[-1] != (n := self.shapes[name][1]):
            return None
        expected = (*(0 for _ in weight.shape[:-2]), n, 1)
        strides = zip(weight.shape, weight.stride(), expected, strict=True)
        return name if all(size == 1 or stride == right for size, stride, right in strides) else None


@contextmanager
def visible_products() -> Iterator[None]:
    """Attention's native path is one operation, in which no product can be seen: inside, it is not taken."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
