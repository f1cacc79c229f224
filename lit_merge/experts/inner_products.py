"""Inner products of task vectors, from one pass over the experts."""

from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.cosines import moved
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
