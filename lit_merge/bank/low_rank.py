"""Deltas: low-rank matrices of several tasks, their ranks, and their sum with the origin."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lit_merge.bank.learnt import NOTHING, corrected
from lit_merge.bank.linalg import numerical_rank, truncated_svd
from lit_merge.bank.on_demand import without_values
from lit_merge.bank.weighted_sums import dense_sum, low_rank_sum
from lit_merge.errors import MergeError


def rank_of(ratio: float, m: int, n: int) -> int:
    """k = max(1, ⌊ratio·min(m, n)⌋).

    >>> rank_of(0.08, 768, 256)
    20
    """
    # Rounding must not lose a direction where the product is whole: 0.29·100 is 28.999999999999996.
    return max(1, int(ratio * min(m, n) + 1e-9))


def ranks_left(common_ratio: float, r: int, tasks: int) -> int:
    """q = (r − ⌊common_ratio·r⌋)/T for each of T tasks, rounded half to even, of which T must fit into r.

    >>> ranks_left(0.8, 768, 8), ranks_left(0.8, 12, 8)
    (19, 0)
    """
    # Python's round is half to even.
    return min(round((r - int(common_ratio * r + 1e-9)) / tasks), r // tasks)


def check_precision(dtype: torch.dtype | None) -> None:
    """Raises MergeError for whole numbers, which cannot hold a weight."""
    if dtype is not None and not dtype.is_floating_point:
        raise MergeError(f"dtype={dtype}: expected floating point, as torch.float16")


def check_rank_ratio(ratio: float) -> float:
    """Raises MergeError outside (0, 1]."""
    if not 0 < ratio <= 1:
        raise MergeError(f"rank_ratio={ratio} is outside (0, 1]: 0.08 keeps 8 % of the directions")
    return ratio


def check_energy(share: float) -> float:
    """Raises MergeError outside (0, 1]."""
    if not 0 < share <= 1:
        raise MergeError(f"energy={share} is outside (0, 1]: 0.9 keeps 90 % of the squared singular values")
    return share


@dataclass(frozen=True, eq=False, repr=False)
class LowRank:
    """T matrices U·diag(S)·Vᵀ of m × n, singular values sorted from the largest: cutting the rank is slicing.

    (In a bank that was cut by what its directions contribute, the contributions are sorted.)"""

    U: Float[Tensor, "T m r"]
    S: Float[Tensor, "T r"]
    V: Float[Tensor, "T n r"]

    @classmethod
    def from_dense(cls, matrices: Float[Tensor, "T m n"], rank: int, exact: bool = False) -> "LowRank":
        """The best approximation of this rank, in the dtype of `matrices`; see `truncated_svd`.

        >>> LowRank.from_dense(torch.eye(3)[None], rank=2).rank
        2
        """
        return cls(*truncated_svd(matrices, rank, exact))

    def __repr__(self) -> str:
        t, m, n = self.shape
        return f"LowRank: {t} matrices of {m} × {n}, rank {self.rank}, {self.U.dtype}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, m, n)."""
        return self.U.shape[0], self.U.shape[1], self.V.shape[1]

    @property
    def rank(self) -> int:
        return self.S.shape[-1]

    @property
    def nbytes(self) -> int:
        return self.U.nbytes + self.S.nbytes + self.V.nbytes

    def __mul__(self, factor: Tensor) -> "LowRank":
        """Every matrix times a number, which its singular values take in."""
        return LowRank(self.U, self.S * factor, self.V)

    def to_dense(self) -> Float[Tensor, "T m n"]:
        u = self.U.to(self.S.dtype)
        return (u * self.S[:, None, :]) @ self.V.to(self.S.dtype).mT

    def to(self, dtype: torch.dtype) -> "LowRank":
        """Singular vectors in another precision; singular values, a thousandth of the bytes, stay as they are."""
        return LowRank(self.U.to(dtype), self.S, self.V.to(dtype))

    def cpu(self) -> "LowRank":
        """These matrices on the CPU."""
        return LowRank(self.U.cpu(), self.S.cpu(), self.V.cpu())

    def truncate(self, rank: int) -> "LowRank":
        """Views of the leading `rank` directions."""
        return LowRank(self.U[..., :rank], self.S[..., :rank], self.V[..., :rank])

    def above(self, least: float) -> "LowRank":
        """Views of the directions of one matrix whose singular values are above `least`, and above rounding's."""
        return self.truncate(int(numerical_rank(self.S, self.shape, least)))

    def energy(self) -> Float[Tensor, "T r"]:
        """Squared singular values: their sum is the squared Frobenius norm of each matrix."""
        return self.S.square()

    def rank_keeping(self, share: float) -> int:
        """The smallest rank that keeps this share of the energy of all T matrices together.

        >>> LowRank.from_dense(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), rank=2).rank_keeping(0.8)
        1
        """
        # Not of their own size: their squares may be none that float32 has.
        kept = (self.S.double() / self.S.double().amax().clamp_min(1e-300)).square().sum(0).cumsum(0)
        # A share that is reached but for rounding is reached.
        return int((kept < share * kept[-1] * (1 - 1e-6)).sum()) + 1

    def select(self, kept: Bool[Tensor, "T r"]) -> "LowRank":
        """Only the chosen directions of every matrix, still sorted; where tasks keep different numbers, the shorter
        ones end with singular values of 0."""
        kept = kept.to(self.S.device)
        return replace(self, S=self.S * kept).take(chosen_first(kept))

    def take(self, order: Int[Tensor, "T k"]) -> "LowRank":
        """The directions at these positions of every matrix."""
        u, v = (f.gather(-1, order[:, None].expand(-1, f.shape[1], -1)) for f in (self.U, self.V))
        return LowRank(u, self.S.gather(-1, order), v)

    def weighted_sum(
        self,
        origin: Float[Tensor, "m n"],
        coefficients: Float[Tensor, " T"] | Float[Tensor, "T r"],
        logits: Float[Tensor, "T r"] | None = None,
    ) -> Float[Tensor, "m n"]:
        """origin + Σ_t coefficients[t] · U_t·diag(S_t)·V_tᵀ, differentiable in `coefficients` and `origin`; or a
        coefficient for every direction, U_t·diag(coefficients[t]·S_t)·V_tᵀ.

        One matrix product over the ranks of all tasks together. The backward reads
        ∂L/∂λ_t = Σ_r s_r·u_rᵀ G v_r off the factors and saves nothing but them.

        With `logits` z, directions whose logit is not above 0 are left out, and z is learnt from the same products
        (AdaRank): ∂L/∂z_r = λ_t·s_r·u_rᵀ G v_r · σ'(z_r/10)/10, straight through the threshold, for kept and dropped
        directions alike.
        """
        return low_rank_sum(coefficients, origin, self.U, self.S, self.V, logits)


def chosen_first(kept: Bool[Tensor, "T r"]) -> Int[Tensor, "T k"]:
    """Positions of the chosen directions in their order, and of others where a task has fewer than another."""
    return (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[:, : max(1, int(kept.sum(-1).max()))]


# Low-rank, or dense (T, …).
Delta = LowRank | Tensor


def ranks_at(deltas: Mapping[str, Delta], rank_ratio: float = 1.0, energy: float = 1.0) -> dict[str, int]:
    """Rank of every low-rank delta once it is cut to these shares, see `TaskBank.truncate`.

    Raises:
        MergeError: a share outside (0, 1].
    """
    check_rank_ratio(rank_ratio)
    check_energy(energy)
    found = {}
    for name, delta in without_values(deltas).items():
        if isinstance(delta, LowRank):
            kept = delta.rank if energy == 1 else deltas[name].rank_keeping(energy)  # type: ignore[union-attr]
            found[name] = min(rank_of(rank_ratio, *delta.shape[1:]), kept)
    return found


def tensors_of(delta: Delta) -> tuple[Tensor, ...]:
    """The factors, or the one tensor."""
    return (delta.U, delta.S, delta.V) if isinstance(delta, LowRank) else (delta,)


def combine(
    origin: Shaped[Tensor, "..."],
    delta: Delta | None,
    coefficients: Float[Tensor, " rows"] | None,
    dtype: torch.dtype,
    logits: Tensor | None = None,
    learnt: Mapping[str, Tensor] = NOTHING,
) -> Shaped[Tensor, "..."]:
    """origin + Σ_t coefficients[t] · Δ[t] of one weight, in `dtype`; the origin alone where there is no delta.

    `learnt` is what adaptation learnt of this weight, by its kind: see `bank/learnt.py`.
    """
    if not origin.is_floating_point():
        return origin
    if learnt:
        origin = corrected(origin.to(torch.promote_types(origin.dtype, torch.float32)), learnt)
    if delta is not None and coefficients is not None:
        # Sums of small differences on large weights: never in half precision, and as precise as the coefficients.
        origin = origin.to(torch.promote_types(coefficients.dtype, torch.promote_types(origin.dtype, torch.float32)))
        if isinstance(delta, LowRank):
            logits = None if logits is None else logits[..., : delta.rank]
            if "directions" in learnt:
                coefficients = learnt["directions"][..., : delta.rank]
            origin = delta.weighted_sum(origin, coefficients, logits)
        else:
            origin = dense_sum(coefficients, origin, delta)
    return origin.to(dtype)
