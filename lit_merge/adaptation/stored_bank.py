"""Where a module keeps the tensors of its task bank, and how it merges them again at every step."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_merge.bank.learnt import NOTHING, is_learnt
from lit_merge.bank.on_demand import OnDemand
from lit_merge.bank.task_bank import TaskBank

BankDevice = Literal["auto", "cpu"]
# Next to the bank come merged weights, their gradients and activations.
LARGEST_SHARE = 0.5
# Bytes: a smaller bank takes less memory than it would take time to read it again and again.
SMALL = 2**28


class StoredBank(nn.Module):
    """The tensors of a bank, frozen.

    Args:
        bank: what is kept. A large one that was loaded stays in its file, from which it is read weight by weight,
            unless it moves to a GPU.
        device: `auto` moves the tensors with the module where they take at most half of the device's free memory;
            `cpu` leaves them on the CPU, in pinned memory where there is a GPU. Then every step moves them to the
            device weight by weight, once to merge and once for the gradient, and keeps none of them there.
    """

    def __init__(self, bank: TaskBank, device: BankDevice = "auto") -> None:
        super().__init__()
        self.frame, self.device = bank, device
        self.factors = nn.ParameterList()
        tensors = bank.tensors()
        self.names = tuple(tensors)
        if device == "auto" and not (isinstance(tensors, OnDemand) and bank.nbytes > SMALL):
            self._keep(tensors)

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        # Frozen parameters rather than buffers: DDP broadcasts buffers at every forward.
        self.factors = nn.ParameterList(nn.Parameter(value, requires_grad=False) for value in tensors.values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StoredBank":
        # Moves with the module, but stays as it was saved where that computes in another precision.
        return super()._apply(lambda value: fn(value).to(value.dtype), recurse)

    def settle(self, device: torch.device) -> None:
        """Before the module moves to a device: whether the bank goes along."""
        if device.type == "cpu":
            return
        if self.device == "auto" and fits(self.frame.nbytes, device):
            if not self.factors:
                # One by one: not all of them are in memory at once.
                self._keep({name: value.to(device) for name, value in self.frame.tensors().items()})
            return
        self.factors = nn.ParameterList()
        if device.type == "cuda":
            # Only from there does a copy run during the computation.
            pinned = {name: v if v.is_pinned() else v.pin_memory() for name, v in self.frame.tensors().items()}
            self.frame = self.frame.with_tensors(pinned)

    def open(self, device: torch.device) -> TaskBank:
        """The bank around the tensors where they lie, its coefficients on `device`: there its weights are merged."""
        bank = self.frame
        if self.factors:
            bank = bank.with_tensors(dict(zip(self.names, self.factors, strict=True)))
        return replace(bank, coefficients=bank.coefficients.to(device))


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether so many bytes leave half of a device's free memory to the rest."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes <= LARGEST_SHARE * free


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
        self,
        bank: TaskBank,
        coefficients: Float[Tensor, "rows L"],
        logits: Mapping[str, Tensor] | None = None,
        learnt: Mapping[str, Tensor] = NOTHING,
    ) -> dict[str, Tensor]:
        """Canonical name → merged weight, differentiable in `coefficients`, `logits` and `learnt`."""
        if not torch.is_grad_enabled() or not self._repeats(bank, coefficients):
            return bank.merge(coefficients, self.dtype, logits, "canonical", learnt)
        if self._replay is None:
            self._replay = self._capture(bank, coefficients, logits or {}, learnt)
        found: dict[str, Tensor] = self._replay(coefficients, logits or {}, dict(learnt))
        return found

    def _repeats(self, bank: TaskBank, coefficients: Tensor) -> bool:
        """Whether this bank was merged before, and can be replayed: a schedule may give another one at every step."""
        device = coefficients.device
        if device.type != "cuda" or isinstance(bank.deltas, OnDemand):
            return False
        tensors = [value for name, value in bank.tensors().items() if name != "coefficients" and not is_learnt(name)]
        if any(value.device != device for value in tensors):
            return False
        known = [(value.data_ptr(), value.shape) for value in tensors]
        if known != self._bank:
            self.forget()
            self._bank = known
            return False
        nbytes = sum(value.numel() for value in bank.origin.values()) * self.dtype.itemsize
        return self._replay is not None or fits(COPIES * nbytes, device)

    def _capture(
        self, bank: TaskBank, coefficients: Tensor, logits: Mapping[str, Tensor], learnt: Mapping[str, Tensor]
    ) -> Any:
        def merge(coefficients: Tensor, logits: dict[str, Tensor], learnt: dict[str, Tensor]) -> dict[str, Tensor]:
            return bank.merge(coefficients, self.dtype, logits, "canonical", learnt)

        likes = [{name: _like(value) for name, value in one.items()} for one in (logits, learnt)]
        with warnings.catch_warnings():
            # Of the runs that warm torch up, on a stream of their own.
            warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
            # Its type hints know tensors only; it takes what pytrees are made of.
            samples: Any = (_like(coefficients), *likes)
            return torch.cuda.make_graphed_callables(merge, samples, allow_unused_input=True)


def _like(value: Tensor) -> Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format).requires_grad_(value.requires_grad)
