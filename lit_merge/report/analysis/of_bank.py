"""The analysis of a bank: of what is added to its origin, without the experts."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from lit_merge.bank.low_rank import LowRank
from lit_merge.bank.task_bank import TaskBank
from lit_merge.report.analysis.build import RATIOS, Analysis, MatrixCurves
from lit_merge.report.analysis.curves import interference


def analyze_bank(bank: TaskBank) -> Analysis:
    """Spectra, interference and cosines of a bank's low-rank deltas, as they are before coefficients.

    What a method has cut off is not in a bank: energies are shares of what it holds. Dense deltas are left out, and so
    is everything of a bank with one delta for all tasks.
    """
    curves: dict[str, MatrixCurves] = {}
    shapes: dict[str, tuple[int, int]] = {}
    gram = torch.zeros(len(bank.tasks), len(bank.tasks), dtype=torch.float64)
    for name, delta in bank.deltas.items():
        if bank.shared or not isinstance(delta, LowRank):
            continue
        _, m, n = delta.shape
        S, side = delta.S.double(), min(m, n)
        crossed = interference(delta.S.float(), delta.V.float())
        # Beyond the rank of the bank there is nothing more.
        rest = side - delta.rank
        shapes[name] = (m, n)
        curves[name] = MatrixCurves(pad(S, (0, rest)), torch.cat([crossed, crossed[-1:].expand(rest)]))
        gram += inner_products(delta)
    return Analysis(bank.tasks, RATIOS, "whole", shapes, {"bank": curves}, {"bank": gram})


def inner_products(delta: LowRank) -> Float[Tensor, "T T"]:
    """⟨Δ_i, Δ_j⟩ = Σ σ_ia σ_jb ⟨u_ia, u_jb⟩ ⟨v_ia, v_jb⟩, from the factors alone, in float64."""
    tasks, rank = delta.S.shape
    left = (delta.U.double() * delta.S.double()[:, None]).mT.flatten(0, 1)
    right = delta.V.double().mT.flatten(0, 1)
    products = (left @ left.mT) * (right @ right.mT)
    return products.view(tasks, rank, tasks, rank).sum((1, 3))
