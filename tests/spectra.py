"""Matrices with the singular values of fine-tuning."""

import torch
from torch import Tensor

from lit_merge.bank.linalg import LARGE


def with_spectrum(shape: tuple[int, int], values: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    r = min(shape)
    u, v = (torch.linalg.qr(torch.randn(side, r, generator=generator)).Q for side in shape)
    return (u * values) @ v.T


# Spectra like fine-tuning's: a slow power, and a few directions over a flat floor.
COUNT = torch.arange(1, LARGE + 1, dtype=torch.float32)
SPECTRA = {"power": COUNT.pow(-0.6), "floor": (-COUNT / 20).exp() + 0.05}
