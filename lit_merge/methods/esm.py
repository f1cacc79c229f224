"""ESM: essential subspaces of what the task vectors change in the outputs (arXiv 2602.20208, 2606.19164)."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from lit_merge.bank.linalg import (
    CLEAR,
    independent,
    numerical_rank,
    partial_isometry,
    product_svd,
    square_root,
    truncated_svd,
)
from lit_merge.bank.low_rank import Delta, LowRank, check_rank_ratio
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import Scaling
from lit_merge.methods.tsv import directions_per_task, tsv_merge
from lit_merge.methods.with_moments import MomentsMethod

Preset = Literal["paper", "official"]
# In names of open_clip: what the authors' code treats by essential subspaces, and what it weighs by layer.
ESSENTIAL = re.compile(r"(in_proj_weight|in_proj\.weight|c_fc\.weight|c_proj\.weight)$")
WEIGHED = re.compile(r"(in_proj_weight|in_proj\.weight|out_proj\.weight|c_fc\.weight|c_proj\.weight)$")
# Singular values of ΔW·L below this share of the largest count as 0.
NEGLIGIBLE = 1e-10
POWER = 0.15


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
    root = torch.eye(delta.shape[1]).to(delta) if moment is None else square_root(moment)
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


def esm(
    task_vectors: Float[Tensor, "T m n"],
    second_moments: Iterable[Tensor | None],
    rank: int,
    preset: Preset = "paper",
    rounding: float = 0.0,
) -> LowRank:
    """Block t of P̃·Ã for every task, for one matrix: everything but the layer factor. In float64.

    A_t = P_tᵀ·ΔW_t, times (‖A_t‖_F / mean_i ‖A_i‖_F)²; side by side P = [P_1 … P_T] and A = [A_1; …; A_T], whose column
    j is multiplied by (‖A[:, j]‖ / mean_i ‖A[:, i]‖)²; P̃ and Ã are the polar factors of P and A, without directions
    that no ΔW_t has.

    Args:
        task_vectors: ΔW_t.
        second_moments: C_t (n, n) of the inputs, to any factor; None for C = I. One is in memory at a time.
        rank: k of every task, T·k ≤ m; a task with fewer essential directions keeps those, one without any is left out.
        preset: the paper's equations or the authors' code, see `ESM`.
        rounding: singular values of ΔW_t that are not above it are rounding.
    """
    T, m, n = task_vectors.shape
    delta = task_vectors.double()
    P, l = essential_subspaces(delta, second_moments, rank, rounding)
    A = P.mT @ delta
    # Directions that tasks share, but for rounding, are one: found before weights make them of many sizes.
    apart = (rounding / A.norm(dim=-1)[l > 0].min()).item() if l.any() else 0.0
    outputs, inputs = (independent(one[l > 0].to(task_vectors.dtype), apart) for one in (P.mT, A))
    norms = torch.linalg.matrix_norm(A if preset == "paper" else delta)
    A = A * relative(norms, norms.mean()).square()[:, None, None]
    if preset == "official":
        weights = relative(l.pow(POWER), l.pow(POWER).sum(1, keepdim=True) / rank)
        P, A = P * weights[:, None, :], A * weights[:, :, None]
    P, A = P.transpose(0, 1).flatten(1), A.flatten(0, 1)
    columns = A.norm(dim=0)
    A = A * relative(columns, columns.mean()).square()
    P, s_P = partial_isometry(P, rank=outputs)
    A, s_A = partial_isometry(A, rank=inputs)
    if preset == "official":
        # Means over all T·k directions, with those that are lacking.
        A = A * (2 * s_P.sum() / (T * rank) * s_A.sum() / min(T * rank, n))
    # Rounding has left something where a task lacks directions: all of it, where it changed nothing.
    A = A.view(T, -1, n) * (l > 0)[:, :, None]
    U, S, V = product_svd(P.view(m, T, -1).transpose(0, 1), A)
    dtype = task_vectors.dtype
    return LowRank(U.to(dtype), S.to(dtype), V.to(dtype))


def relative(values: Float[Tensor, "..."], mean: Tensor) -> Float[Tensor, "..."]:
    """values / mean, 0 where there is nothing to compare: every value is then 0."""
    return torch.where(mean > 0, values / mean, 0)


def layer_level(deltas: dict[str, Delta], weighed: set[str]) -> dict[str, Delta]:
    """ΔW_l · (‖ΔW_l‖_F / mean over layers of the same kind)² for the names in `weighed`; ΔW_l sums over the tasks.

    Of the same kind are weights of one shape whose names differ in the block's number only. One that is alone is its
    own mean: its factor is 1.
    """
    norms: dict[str, Tensor] = {}
    kinds: dict[object, list[str]] = defaultdict(list)
    for name, delta in deltas.items():
        if name in weighed and isinstance(delta, LowRank):
            tasks, *shape = delta.shape
            one, zero = delta.S.new_ones(tasks, dtype=torch.float64), delta.S.new_zeros(shape, dtype=torch.float64)
            norms[name] = delta.weighted_sum(zero, one).norm()
            kinds[re.sub(r"(^|\.)\d+\.", r"\1#.", name, count=1), tuple(shape)].append(name)
    done = dict(deltas)
    for names in kinds.values():
        mean = torch.stack([norms[name] for name in names]).mean()
        for name in names:
            delta = deltas[name]
            assert isinstance(delta, LowRank)
            beta = relative(norms[name], mean).square()
            done[name] = LowRank(delta.U, delta.S * beta.to(delta.S.dtype), delta.V)
    return done


@dataclass(frozen=True)
class ESM(MomentsMethod):
    """W = θ₀ + scaling · Σ_t β_l · P̃_t·Ã_t for matrices; the rest is θ₀ + scaling · mean_t τ_t.

    Args:
        preset: `paper`, the equations as published; `official`, what the authors' code does to open_clip's image
            towers: essential subspaces for in_proj, c_fc and c_proj only, their directions weighted, the whole scaled
            by 2·m_P·m_A (means of the singular values of P and A); TSV-M for all other matrices; `scaling` for in_proj,
            c_fc and c_proj only. The paper's factors P̃·Ã have norm 1 whatever the task vectors' is: it is `scaling`
            that brings them to size.
        rank_ratio: k = max(1, ⌊rank_ratio·m⌋) of m outputs, at most 1/T; ⌊m/T⌋, the authors' choice, by default.
        scaling: α; or a rule that finds it without labels. The authors search it on validation images.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.
        samples, moments: see `MomentsMethod`. Matrices without moments are taken with C = I, and a warning says so.

    Raises:
        MergeError: a ratio outside (0, 1/T], moments that do not fit.

    A matrix with fewer outputs, or directions, than there are tasks goes with the rest.
    """

    preset: Preset = "paper"
    rank_ratio: float | None = None
    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in ("paper", "official"):
            raise MergeError(f"preset={self.preset!r}: expected paper or official")
        if self.rank_ratio is not None:
            check_rank_ratio(self.rank_ratio)

    @property
    def without_moments(self) -> str:
        return "their essential subspaces are taken with C = I, as if all inputs were alike"

    def wants_moments(self, name: str) -> bool:
        return self.preset == "paper" or bool(ESSENTIAL.search(name))

    def start(self, name: str) -> float:
        return super().start(name) if self.preset == "paper" or ESSENTIAL.search(name) else 1.0

    def check(self, experts: Experts) -> None:
        if not any(self.wants_moments(name) for name in self.selected(experts.shapes, len(experts.tasks))):
            raise MergeError(
                "preset=official is for weights named in_proj, c_fc and c_proj, of which there are none: "
                "take preset=paper"
            )

    def has_room(self, shape: tuple[int, ...], tasks: int) -> bool:
        # In the official preset either side of a matrix may count, as of TSV-M.
        return tasks <= (shape[0] if self.preset == "paper" else min(shape))

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        if not self.wants_moments(weight.name):
            rank = directions_per_task(weight, self.rank_ratio)
            return weight.base, tsv_merge(weight.task_vectors, rank, weight.svd("vectors"), weight.rounding)
        rank = outputs_per_task(weight, self.rank_ratio)
        return weight.base, esm(weight.task_vectors, self.second_moments(weight), rank, self.preset, weight.rounding)

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors / len(weight.experts)

    def finish(self, deltas: dict[str, Delta]) -> dict[str, Delta]:
        return layer_level(deltas, {name for name in deltas if self.preset == "paper" or WEIGHED.search(name)})


def outputs_per_task(weight: Weight, rank_ratio: float | None) -> int:
    """k = ⌊m/T⌋ of m ≥ T outputs, or ⌊rank_ratio·m⌋, of which T must fit into m.

    Raises:
        MergeError: directions of all tasks that do not fit side by side.
    """
    tasks, m, _ = weight.experts.shape
    if rank_ratio is None:
        return m // tasks
    if (rank := max(1, int(rank_ratio * m + 1e-9))) * tasks > m:
        raise MergeError(
            f"rank_ratio={rank_ratio} keeps {rank} directions of {weight.name} for each of {tasks} tasks, "
            f"{rank * tasks} of {m}: take at most {1 / tasks:.4g}, or leave it out",
            weight=weight.name,
        )
    return rank
