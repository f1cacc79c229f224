"""Where a method's scale enters a bank, and the rule that finds one from the weights alone."""

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.task_bank import TaskBank
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.experts.matrices import select_matrices
from lit_merge.experts.stream import WeightStream
from lit_merge.methods.base import MergeMethod


def start_coefficients(
    method: MergeMethod, layers: tuple[str, ...], rows: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "rows L"]:
    """What a bank of this method starts from."""
    return torch.tensor([method.start(name) for name in layers], dtype=dtype).expand(rows, -1).clone()


def at_scaling(bank: TaskBank, method: MergeMethod, scaling: float) -> TaskBank:
    """This bank with the coefficients of another scale, which a rule has found; the rule stays on record."""
    coefficients = start_coefficients(method.at(scaling), bank.layers, len(bank.coefficients), bank.coefficients.dtype)
    about: dict[str, Any] = bank.method | {"chosen": {"scaling": round(scaling, 6)}}
    return replace(bank, coefficients=coefficients, method=about)


def self_consistent_scaling(bank: TaskBank, weights: WeightStream, method: MergeMethod) -> float:
    """The scale at which the merge contains every task vector once, on average: no data, closed form.

    mean_t ⟨W(λ) − θ₀, τ_t⟩ / ‖τ_t‖² = 1 over the matrices, which is linear in λ. It needs θ₀: centred task vectors sum
    to zero, so that their own projections are negative. A rule of this project; see docs/choosing.md.

    Args:
        bank: of `method`, at any coefficients.
        weights: the same experts, with their base.
        method: whose scale is chosen.

    Raises:
        MergeError: experts that all equal the base, or a merge that contains none of their task vectors.
    """
    tasks = len(bank.tasks)
    matrices = method.selected(bank.shapes, tasks) or select_matrices(bank.shapes, "all")
    fixed, moving, norms = (torch.zeros(tasks, dtype=torch.float64) for _ in range(3))
    # Coefficients are a + b·λ: what scales with λ, and what a method keeps at 1 whatever it is.
    zero, one = (start_coefficients(method.at(value), bank.layers, len(bank.coefficients)) for value in (0.0, 1.0))
    at_zero, at_one = (replace(bank, coefficients=value) for value in (zero, one))
    for weight in weights:
        if weight.name not in matrices or weight.pretrained is None:
            continue
        vectors = weight.task_vectors.flatten(1).double()
        low, high = (merge.weight(weight.name, torch.float64) for merge in (at_zero, at_one))
        fixed += vectors @ (low - weight.base).flatten()
        moving += vectors @ (high - low).flatten()
        norms += vectors.square().sum(1)
    if not norms.all():
        unchanged = ", ".join(task for task, norm in zip(bank.tasks, norms.tolist(), strict=True) if not norm)
        raise MergeError(f"scaling=self_consistent: the experts {unchanged} equal the base in every matrix")
    if not any(name in bank.ranks for name in matrices):
        warnings.warn(
            "scaling=self_consistent overshoots where task vectors are added whole: entropy finds a better scale",
            MergeWarning,
            stacklevel=3,
        )
    slope = (moving / norms).mean().item()
    if not math.isfinite(slope):
        raise MergeError("scaling=self_consistent: squares of these task vectors are beyond float64: give a number")
    if slope <= 0:
        raise MergeError("scaling=self_consistent: the merge contains none of the task vectors: give a number")
    return (1 - (fixed / norms).mean().item()) / slope
