"""What one matrix of all tasks says: interference, reconstruction error, kept energy (arXiv 2412.12153); and cosines.

Everything is answered for every rank at once, from one decomposition: entry k − 1 of a curve is about rank k.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Normalise = Literal["whole", "top"]


def interference(
    S: Float[Tensor, "T r"], V: Float[Tensor, "T n r"], normalise: Normalise = "whole"
) -> Float[Tensor, " r"]:
    """Row-space interference I(k) = Σ_{i≠j} ‖(S_i V_iᵀ)(S_j V_jᵀ)ᵀ‖_F on the k leading right singular vectors.

    Ordered pairs: every two tasks count twice. A task vector of zeros interferes with nothing. The block of k
    directions is the leading corner of the block of all, so one Gram matrix per pair holds every k.

    Args:
        S: singular values from the largest; they are divided by their sum, so that scales of tasks do not count.
        V: right singular vectors.
        normalise: the sum of `whole` spectra, under which I rises with k, or of the `top` k values, under which it
            tends to fall.

    >>> same = torch.eye(3, 2).expand(2, 3, 2)
    >>> interference(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), same)
    tensor([2., 2.], dtype=torch.float64)
    """
    shares = normalised(S)
    scaled = V * shares[:, None].to(V.dtype)
    tops = shares.cumsum(1) if normalise == "top" else torch.ones_like(shares)
    total = torch.zeros_like(shares[0])
    for i in range(len(S) - 1):
        squares = (scaled[i].mT @ scaled[i + 1 :]).square()
        # What rank k + 1 adds to rank k is one row up to the diagonal and one column above it.
        borders = squares.tril().sum(2, dtype=total.dtype) + squares.triu(1).sum(1, dtype=total.dtype)
        total += 2 * _ratio(borders.cumsum(1).sqrt(), tops[i] * tops[i + 1 :]).sum(0)
    return total


def normalised(S: Float[Tensor, "T r"]) -> Float[Tensor, "T r"]:
    """Singular values over their sum, in float64; zeros stay zeros."""
    return _ratio(S.double(), S.double().sum(1, keepdim=True))


def reconstruction_error(S: Float[Tensor, "T r"]) -> Float[Tensor, " r"]:
    """R(k) = Σ_t Σ_{i>k} σ²_{t,i}: the squared error of all tasks cut to rank k. R(r) is 0.

    >>> reconstruction_error(torch.tensor([[3.0, 2.0, 1.0]]))
    tensor([5., 1., 0.], dtype=torch.float64)
    """
    energies = S.double().square().sum(0)
    from_k = energies.flip(0).cumsum(0).flip(0)
    return torch.cat([from_k[1:], from_k.new_zeros(1)])


def kept_energy(S: Float[Tensor, "T r"]) -> Float[Tensor, " r"]:
    """1 − R(k) / Σ_t ‖Δ_t‖²; 1 where there is nothing to lose."""
    shares = _ratio(S.double(), S.double().amax())
    return 1 - _ratio(reconstruction_error(shares), shares.square().sum())


def rank_keeping(S: Float[Tensor, "T r"], share: float) -> int:
    """The smallest k whose `kept_energy` reaches a share.

    >>> rank_keeping(torch.tensor([[3.0, 2.0, 1.0]]), share=0.9)
    2
    """
    return int((kept_energy(S) < share).sum()) + 1


def cosines(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T T"]:
    """⟨τ_i, τ_j⟩ / (‖τ_i‖ ‖τ_j‖) from all inner products; 0 for a vector of zeros."""
    norms = gram.diagonal().sqrt()
    return _ratio(gram, norms[:, None] * norms).clamp(-1, 1)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below; 0 where below is 0."""
    return torch.where(below > 0, above / torch.where(below > 0, below, 1), 0)
