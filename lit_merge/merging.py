"""How a module merges its bank again and again: on a GPU as one launch instead of very many."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.stored_bank import fits
from lit_merge.task_bank import TaskBank

# Of the weights: the graphs' own copies of them and of their gradients, and what is computed in between.
COPIES = 4


class Merging:
    """`TaskBank.merge` to canonical names.

    A merge and its backward are very many small operations, which a GPU finishes sooner than they can be launched.
    From the second merge of the same bank on, where gradients are asked for and there is room, they are replayed as
    CUDA graphs. Then the weights lie in the same memory every time: those of one merge are gone with the next.

    Args:
        dtype: of the weights.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.forget()

    def forget(self) -> None:
        """Gives the graphs' memory back."""
        self._bank: object = None
        self._replay: Any = None

    def __call__(
        self, bank: TaskBank, coefficients: Float[Tensor, "rows L"], logits: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Canonical name → merged weight, differentiable in `coefficients` and `logits`."""
        if not torch.is_grad_enabled() or not self._repeats(bank, coefficients):
            return bank.merge(coefficients, self.dtype, logits, "canonical")
        if self._replay is None:
            self._replay = self._capture(bank, coefficients, logits)
        found: dict[str, Tensor] = self._replay(coefficients, logits or {})
        return found

    def _repeats(self, bank: TaskBank, coefficients: Tensor) -> bool:
        """Whether this bank was merged before, and can be replayed: a schedule may give another one at every step."""
        device = coefficients.device
        if device.type != "cuda":
            return False
        tensors = [value for name, value in bank.tensors().items() if name != "coefficients"]
        if any(value.device != device for value in tensors):
            return False
        known = [(value.data_ptr(), value.shape) for value in tensors]
        if known != self._bank:
            self.forget()
            self._bank = known
            return False
        nbytes = sum(value.numel() for value in bank.origin.values()) * self.dtype.itemsize
        return self._replay is not None or fits(COPIES * nbytes, device)

    def _capture(self, bank: TaskBank, coefficients: Tensor, logits: Mapping[str, Tensor] | None) -> Any:
        def merge(coefficients: Tensor, logits: dict[str, Tensor]) -> dict[str, Tensor]:
            return bank.merge(coefficients, self.dtype, logits, "canonical")

        likes = {name: _like(value) for name, value in (logits or {}).items()}
        with warnings.catch_warnings():
            # Of the runs that warm torch up, on a stream of their own.
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
            # Its type hints know tensors only; it takes what pytrees are made of.
            samples: Any = (_like(coefficients), likes)
            return torch.cuda.make_graphed_callables(merge, samples, allow_unused_input=True)


def _like(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format).requires_grad_(value.requires_grad)
