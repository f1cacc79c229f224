"""Essential subspaces: the directions in which matrices move their outputs."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from lit_merge.bank.gram import of_middling_size
from lit_merge.bank.linalg import CLEAR, independent, numerical_rank, square_root, truncated_svd

# Singular values of ΔW·L below this share of the largest count as 0.
NEGLIGIBLE = 1e-10


def essential_subspace(
    delta: Float[Tensor, "m n"], moment: Float[Tensor, "n n"] | None, rank: int, rounding: float = 0.0
) -> tuple[Float[Tensor, "m k"], Float[Tensor, " k"]]:
    """P, orthonormal, and ℓ: the principal directions of the output shift ΔO = X·ΔWᵀ, k = min(rank, rank of ΔO).

    Exact without the activations X: with C = XᵀX = L·Lᵀ they are the left singular vectors of ΔW·L and the squares of
    its singular values. C = I, the SVD of ΔW, where `moment` is None. Any factor on C is one on ℓ only. Directions of
    which `rounding`, a singular value of what rounded ΔW, could be a twentieth are none.

    >>> import torch
    >>> P, l = essential_subspace(torch.randn(6, 4), None, rank=2)
    >>> P.shape, l.shape
    (torch.Size([6, 2]), torch.Size([2]))
    """
    root = torch.eye(delta.shape[1]).to(delta) if moment is None else square_root(of_middling_size(moment)[0])
    u, s, v = truncated_svd(delta @ root, rank)
    # What rounding becomes in the outputs: L·v is the input of the direction.
    blurred = s <= CLEAR * rounding * (root @ v).norm(dim=0)
    first = int(blurred.to(torch.int8).argmax()) if blurred.any() else len(s)
    k = min(first, int(numerical_rank(s, delta.shape, share=NEGLIGIBLE)))
    return u[:, :k], s[:k].square()


def essential_subspaces(
    task_vectors: Float[Tensor, "T m n"], second_moments: Iterable[Tensor | None], rank: int, rounding: float = 0.0
) -> tuple[Float[Tensor, "T m k"], Float[Tensor, "T k"]]:
    """P_t and ℓ_t of every task. Directions that a task lacks are zeros: norms and polar factors do not see them."""
    found = [
        essential_subspace(delta, C, rank, rounding) for delta, C in zip(task_vectors, second_moments, strict=True)
    ]
    k = max(1, *(len(l) for _, l in found))
    P, l = ([pad(one, (0, k - one.shape[-1])) for one in side] for side in zip(*found, strict=True))
    return torch.stack(P), torch.stack(l)


def independent_directions(
    P: Float[Tensor, "T m k"], A: Float[Tensor, "T k n"], l: Float[Tensor, "T k"], rounding: float, dtype: torch.dtype
) -> tuple[int, int]:
    """How many directions all tasks have together, of outputs P and of inputs A = P_tᵀ·ΔW_t, before weights make
    them of many sizes. Those that tasks share, but for what `rounding` in this dtype has turned them by, are one."""
    apart = (rounding / A.norm(dim=-1)[l > 0].min()).item() if l.any() else 0.0
    outputs, inputs = (independent(one[l > 0].to(dtype), apart) for one in (P.mT, A))
    return outputs, inputs
