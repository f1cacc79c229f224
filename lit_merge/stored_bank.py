"""Where a module keeps the tensors of its task bank: on its own device, or on the CPU, from where they are streamed."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lit_merge.task_bank import TaskBank

BankDevice = Literal["auto", "cpu"]
# Beside the bank come merged weights, their gradients and activations.
LARGEST_SHARE = 0.5


class StoredBank(nn.Module):
    """The tensors of a bank, frozen.

    Args:
        bank: what is kept.
        device: `auto` moves the tensors with the module where they take at most half of the device's free memory;
            `cpu` leaves them on the CPU, in pinned memory where there is a GPU. Then every step moves them to the
            device weight by weight, once to merge and once for the gradient, and keeps none of them there.
    """

    def __init__(self, bank: TaskBank, device: BankDevice = "auto") -> None:
        super().__init__()
        self.frame = bank
        self.names, tensors = zip(*bank.tensors().items(), strict=True)
        self.streamed: list[Tensor] | None = list(tensors) if device == "cpu" else None
        # Frozen parameters rather than buffers: DDP broadcasts buffers at every forward.
        kept = () if device == "cpu" else tensors
        self.factors = nn.ParameterList(nn.Parameter(value, requires_grad=False) for value in kept)

    def settle(self, device: torch.device) -> None:
        """Before the module moves to a device: whether the bank goes along."""
        if device.type == "cpu":
            return
        if self.streamed is None and not fits(self.frame.nbytes, device):
            self.streamed = [value.data for value in self.factors]
            self.factors = nn.ParameterList()
        if self.streamed is not None and device.type == "cuda":
            # Only from there does a copy run beside the computation.
            self.streamed = [value if value.is_pinned() else value.pin_memory() for value in self.streamed]

    def open(self, device: torch.device) -> TaskBank:
        """The bank around the tensors where they lie, its coefficients on `device`: there its weights are merged."""
        tensors = self.factors if self.streamed is None else self.streamed
        bank = self.frame.with_tensors(dict(zip(self.names, tensors, strict=True)))
        return replace(bank, coefficients=bank.coefficients.to(device))


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether so many bytes leave half of a device's free memory to the rest."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes <= LARGEST_SHARE * free
