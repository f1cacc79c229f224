"""Angles between vectors, and what is left of them without a mix of all, from their inner products."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gram_of_rest(gram: Float[Tensor, "*L T T"], c: Float[Tensor, "*L T"]) -> Float[Tensor, "*L T T"]:
    """⟨φ_i, φ_j⟩ of φ_t = τ_t − Σ_s c_s τ_s; a task vector that is zero stays zero."""
    mix = torch.eye(gram.shape[-1], dtype=gram.dtype) - moved(gram).to(c)[..., :, None] * c[..., None, :]
    return mix @ gram @ mix.mT


def moved(gram: Float[Tensor, "*L T T"]) -> Bool[Tensor, "*L T"]:
    """Which task vectors are not zero."""
    return gram.diagonal(dim1=-2, dim2=-1) > 0


def count_pairs(gram: Float[Tensor, "*L T T"]) -> Float[Tensor, "*L"]:
    """The number N of ordered pairs of task vectors that are not zero."""
    tasks = moved(gram).sum(-1).to(gram.dtype)
    return tasks * (tasks - 1)


def cosines(gram: Float[Tensor, "*L T T"]) -> tuple[Float[Tensor, "*L T T"], Float[Tensor, "*L T"]]:
    """cos_ij, zero on the diagonal, and 1/n_i; zero vectors have cosine 0 with all and 0 for 1/n_i."""
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    inverse = torch.where(norm > 0, 1 / norm, 0.0)
    cos = gram * inverse[..., :, None] * inverse[..., None, :]
    return cos * (1 - torch.eye(gram.shape[-1], dtype=gram.dtype)), inverse


def mean_cos(gram: Float[Tensor, "T T"], of: Float[Tensor, "T T"]) -> float:
    """mean_{i≠j} |cos| over the pairs of task vectors that are not zero in `of`; 0 where there are none."""
    return (cosines(gram)[0].abs().sum() / count_pairs(of).clamp_min(1)).item()
