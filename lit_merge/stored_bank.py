"""Where a module keeps the tensors of its task bank: on its own device, or on the CPU, from where they are streamed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lit_merge.on_demand import OnDemand
from lit_merge.task_bank import TaskBank

BankDevice = Literal["auto", "cpu"]
# Beside the bank come merged weights, their gradients and activations.
LARGEST_SHARE = 0.5


class StoredBank(nn.Module):
    """The tensors of a bank, frozen.

    Args:
        bank: what is kept. One that was loaded stays in its file, from which it is read weight by weight, unless it
            moves to a GPU.
        device: `auto` moves the tensors with the module where they take at most half of the device's free memory;
            `cpu` leaves them on the CPU, in pinned memory where there is a GPU. Then every step moves them to the
            device weight by weight, once to merge and once for the gradient, and keeps none of them there.
    """

    def __init__(self, bank: TaskBank, device: BankDevice = "auto") -> None:
        super().__init__()
        self.frame, self.device = bank, device
        tensors = bank.tensors()
        self.names = tuple(tensors)
        self.streamed: Mapping[str, Tensor] | None = None
        self.factors = nn.ParameterList()
        if device == "cpu" or isinstance(tensors, OnDemand):
            self.streamed = tensors
        else:
            self._keep(tensors)

    def _keep(self, tensors: Mapping[str, Tensor]) -> None:
        # Frozen parameters rather than buffers: DDP broadcasts buffers at every forward.
        self.factors = nn.ParameterList(nn.Parameter(value, requires_grad=False) for value in tensors.values())
        self.streamed = None

    def settle(self, device: torch.device) -> None:
        """Before the module moves to a device: whether the bank goes along."""
        if device.type == "cpu":
            return
        goes = self.device == "auto" and fits(self.frame.nbytes, device)
        if goes and self.streamed is not None:
            self._keep(self.streamed)
        elif not goes and self.streamed is None:
            self.streamed = dict(zip(self.names, (value.data for value in self.factors), strict=True))
            self.factors = nn.ParameterList()
        if self.streamed is not None and device.type == "cuda":
            # Only from there does a copy run beside the computation.
            self.streamed = {name: v if v.is_pinned() else v.pin_memory() for name, v in self.streamed.items()}

    def open(self, device: torch.device) -> TaskBank:
        """The bank around the tensors where they lie, its coefficients on `device`: there its weights are merged."""
        tensors = self.streamed
        if tensors is None:
            tensors = dict(zip(self.names, self.factors, strict=True))
        bank = self.frame.with_tensors(tensors)
        return replace(bank, coefficients=bank.coefficients.to(device))


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether so many bytes leave half of a device's free memory to the rest."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes <= LARGEST_SHARE * free
