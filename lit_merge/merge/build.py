"""Task banks of experts, by any method."""

from collections.abc import Mapping, Sequence

import torch

from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Source
from lit_merge.experts.decompositions import Decompositions
from lit_merge.experts.experts import Experts
from lit_merge.merge.checks import check_made_of
from lit_merge.merge.job import Job, Svd
from lit_merge.methods import Transform
from lit_merge.methods.base import MergeMethod


def build_bank(
    experts: Mapping[str, Source] | Experts,
    base: Source | None = None,
    *,
    method: MergeMethod,
    transform: Transform | None = None,
    dtype: torch.dtype | None = None,
    decompositions: Decompositions | None = None,
    exclude: Sequence[str] = (),
    svd: Svd = "auto",
) -> TaskBank:
    """Merges experts into a task bank, one weight at a time.

    Args:
        experts: task → path or state dict, in the order of the tasks.
        base: the pretrained checkpoint; optional where the method needs none (CART, weight averaging).
        method: what to do with every weight, for example `CART(rank_ratio=0.08)`. Of the rules for its scale, only
            `self_consistent` can be followed here; `entropy` looks at data (`choose_scaling`).
        transform: what to do with the task vectors first, for example `AWD()`.
        dtype: of the origin and the factors; None stores them in the experts' dtype. Decompositions are computed in
            float32 (float64 for float64 experts) whatever is chosen here; singular values stay in that precision.
        decompositions: to share with other banks of the same experts and transform.
        svd: `auto` decomposes large float32 matrices only as far as is asked for, which changes merged weights by less
            than a thousandth; `exact` decomposes all as a whole.
        exclude: shell patterns of weights that are not merged, as `classifier.*`; of experts that are not open yet.

    Raises:
        MergeError: experts that do not fit together, a weight that is not finite, a base that is missing.
    """
    check_made_of(experts, method, transform)
    if not isinstance(experts, Experts):
        # With the base also where the method needs none: LoRA experts do.
        experts = Experts(experts, base, exclude)
    return Job.open(experts, method, transform, decompositions, svd).build(dtype)
