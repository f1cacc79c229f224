"""Inner products of task vectors, from one pass over the experts, and what their cosines say."""

from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_merge.console import track_weights
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.experts.stream import WeightStream

# Columns of all task vectors that are in float64 at a time.
CHUNK = 2**22
# Below it, squares in float64 have fewer digits.
LEAST = 1e-290


def check_squares(gram: Float[Tensor, "T T"], vectors: Float[Tensor, "T _"], name: str) -> None:
    """Raises MergeError where inner products of a weight's task vectors are no numbers of float64, or have lost
    digits."""
    squares = gram.diagonal()
    if not gram.isfinite().all() or ((squares < LEAST) & vectors.any(1)).any():
        raise MergeError(
            f"{name}: squares of its task vectors are beyond float64: scale all experts and the base by one factor",
            weight=name,
        )


def gram_matrices(experts: Experts) -> tuple[list[str], Float[Tensor, "L T T"]]:
    """Names of the L floating-point weights and ⟨τ_i, τ_j⟩ of each, in float64.

    Raises:
        MergeError: two experts whose task vectors are identical and not zero; no base; squares beyond float64.
    """
    names, grams = [], []
    same = set(combinations(range(len(experts.tasks)), 2))
    for weight in track_weights(WeightStream(experts, with_base=True), experts.sizes, "comparing task vectors"):
        if not weight.experts.is_floating_point():
            continue
        vectors = weight.task_vectors.reshape(len(experts.tasks), -1)
        # Equal to the last bit: rounding in the Gram matrix would call experts identical that differ by 1e-8.
        same = {(i, j) for i, j in same if torch.equal(vectors[i], vectors[j])}
        gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
        for part in vectors.split(CHUNK, 1):
            part = part.double()
            gram += part @ part.T
        check_squares(gram, vectors, weight.name)
        names.append(weight.name)
        grams.append(gram)
    if not grams:
        return [], torch.zeros(0, len(experts.tasks), len(experts.tasks), dtype=torch.float64)
    stacked = torch.stack(grams)
    for i, j in sorted(same):
        if moved(stacked.sum(0))[i]:
            one, other = experts.tasks[i], experts.tasks[j]
            raise MergeError(
                f"the experts {one} and {other} are identical: AWD cannot part them, leave one out", task=one
            )
    return names, stacked


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
