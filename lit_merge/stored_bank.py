"""Where a module keeps the tensors of its task bank: on its device, in their file, or on the CPU for another device."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lit_merge.on_demand import OnDemand
from lit_merge.task_bank import TaskBank

BankDevice = Literal["auto", "cpu"]
# Beside the bank come merged weights, their gradients and activations.
LARGEST_SHARE = 0.5
# Bytes: a smaller bank takes less memory than it would take time to map it again and again.
SMALL = 2**28


class StoredBank(nn.Module):
    """The tensors of a bank, frozen.

    Args:
        bank: what is kept. A large one that was loaded stays in its file, from which it is mapped weight by weight,
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
                self._keep(self.frame.tensors())
            return
        self.factors = nn.ParameterList()
        if device.type == "cuda":
            # Only from there does a copy run beside the computation.
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
