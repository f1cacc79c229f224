"""The one driver that runs any method over the weights of the experts."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from lit_merge.checkpoints import Source
from lit_merge.decompositions import Decompositions
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.experts import Experts, WeightStream
from lit_merge.methods.base import MergeMethod
from lit_merge.methods.scaling import at_scaling, self_consistent_scaling, start_coefficients
from lit_merge.progress import track
from lit_merge.task_bank import Delta, TaskBank
from lit_merge.transforms import Transform


def build_bank(
    experts: Mapping[str, Source] | Experts,
    base: Source | None = None,
    *,
    method: MergeMethod,
    transform: Transform | None = None,
    dtype: torch.dtype | None = None,
    decompositions: Decompositions | None = None,
    exclude: Sequence[str] = (),
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
        exclude: shell patterns of weights that are not merged, as `classifier.*`; of experts that are not open yet.

    Raises:
        MergeError: experts that do not fit together, a weight that is not finite, a base that is missing.
    """
    if transform is not None and method.centred:
        name, other = type(method).__name__, type(transform).__name__
        warnings.warn(
            f"{other} changes nothing under {name}: centring removes every shared vector already; it is left out",
            MergeWarning,
            stacklevel=2,
        )
        transform = None
    consistent = method.scale == "self_consistent"
    with_base = method.needs_base or transform is not None or consistent
    if not isinstance(experts, Experts):
        # Also where the method needs none: LoRA experts do.
        experts = Experts(experts, base, exclude)
    if with_base and experts.base is None:
        needy = method if method.needs_base else transform
        what = "scaling=self_consistent" if needy is None else type(needy).__name__
        raise MergeError(f"{what} needs the pretrained checkpoint: pass base=…")
    method.check(experts)
    selected = method.selected(experts.shapes)
    label = type(method).__name__ if transform is None else f"{type(transform).__name__} and {type(method).__name__}"
    change = None if transform is None else transform.fit(experts)
    weights = WeightStream(experts, with_base, change, decompositions)
    run = method.prepare(weights)
    origins, deltas = merge_weights(run, weights, selected, dtype, f"merging with {label}")
    deltas = run.finish(deltas)
    # λ = 0.3 in float32 would be off by 4e-8: too much for experts in float64.
    precision = torch.float64 if torch.float64 in experts.dtypes.values() else torch.float32
    rows = next((delta.shape[0] for delta in deltas.values()), len(experts.tasks))
    about = method.describe()
    if transform is not None:
        about["transform"] = transform.describe() | getattr(change, "report", {})
    bank = TaskBank(
        tasks=experts.tasks,
        origin=origins,
        deltas=deltas,
        coefficients=start_coefficients(method, tuple(deltas), rows, precision),
        dtypes=dict(experts.dtypes),
        method=about,
        naming=experts.naming,
    )
    if not consistent:
        return bank
    return at_scaling(bank, method, self_consistent_scaling(bank, weights, method))


def merge_weights(
    run: MergeMethod, weights: WeightStream, selected: frozenset[str], dtype: torch.dtype | None, label: str
) -> tuple[dict[str, Tensor], dict[str, Delta]]:
    """Origin of every weight, and the delta of every one that differs, as they are stored. Says which experts are the
    same file twice, as far as can be told."""
    experts = weights.experts
    origins: dict[str, Tensor] = {}
    deltas: dict[str, Delta] = {}
    alike = set(combinations(range(len(experts.tasks)), 2))
    for weight in track(weights, label, len(weights)):
        alike = {(i, j) for i, j in alike if torch.equal(weight.experts[i], weight.experts[j])}
        stored = dtype if dtype and weight.experts.is_floating_point() else experts.dtypes[weight.name]
        if weight.agrees:
            origins[weight.name] = weight.experts[0].to(stored)
            continue
        origin, delta = (run.matrix if weight.name in selected else run.rest)(weight)
        origins[weight.name] = origin.to(stored)
        if delta is not None:
            deltas[weight.name] = delta.to(stored)
    for i, j in sorted(alike):
        told = f"the experts {experts.tasks[i]} and {experts.tasks[j]} are identical: is a path wrong?"
        warnings.warn(told, MergeWarning, stacklevel=3)
    return origins, deltas
