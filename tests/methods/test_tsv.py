"""What must hold of TSV-M and TSV-Compress (METHODS: arXiv 2412.00081)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_merge import TSVM, LowRank, MergeError, MergeMethod, MergeWarning, TSVCompress, build_bank
from lit_merge.methods.tsv import tsv_merge

State = dict[str, Tensor]
MATRIX = "resblocks.0.mlp.c_fc.weight"
SHAPES = {MATRIX: (12, 9), "proj": (8, 10), "text_projection": (8, 8), "ln.bias": (9,), "conv.weight": (4, 3, 2, 2)}


def make(tasks: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[dict[str, State], State]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}  # noqa: E731
    return {f"task{t}": draw() for t in range(tasks)}, draw()


def top(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ s[:rank].diag() @ vh[:rank]


@pytest.mark.parametrize("tasks", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_compressed_experts(tasks: int, dtype: torch.dtype) -> None:
    experts, base = make(tasks, dtype)
    bank = build_bank(experts, base, method=TSVCompress())
    assert bank.ranks == {MATRIX: 9 // tasks, "proj": 8 // tasks, "text_projection": 8 // tasks}
    for task, expert in experts.items():
        for name, value in bank.expert(task).items():
            assert value.dtype == dtype
            tau = expert[name].double() - base[name].double()
            kept = top(tau, min(tau.shape) // tasks) if name in bank.ranks else tau
            error = value.double() - base[name].double() - kept
            assert error.norm() < (1e-12 if dtype == torch.float64 else 1e-5) * tau.norm()


@given(st.floats(0.01, 1), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_ratio_of_ones_own(ratio: float, tasks: int, seed: int) -> None:
    """Directions of different tasks never meet in TSV-Compress: they need not fit side by side."""
    experts, base = make(tasks, seed=seed)
    bank = build_bank(experts, base, method=TSVCompress(rank_ratio=ratio))
    for name, rank in bank.ranks.items():
        assert rank == max(1, int(ratio * min(SHAPES[name]) + 1e-9))
        tau = experts["task0"][name] - base[name]
        torch.testing.assert_close(bank.expert("task0")[name], base[name] + top(tau, rank))


def test_full_rank_returns_each_expert() -> None:
    experts, base = make(3)
    bank = build_bank(experts, base, method=TSVCompress(rank_ratio=1.0))
    for task, expert in experts.items():
        for name, value in bank.expert(task).items():
            torch.testing.assert_close(value, expert[name])


@pytest.mark.parametrize("method", [TSVM(), TSVCompress()])
def test_text_projection_is_compressed_but_not_merged_by_directions(method: MergeMethod) -> None:
    experts, base = make(2)
    bank = build_bank(experts, base, method=method)
    compressed = isinstance(method, TSVCompress)
    assert isinstance(bank.deltas["text_projection"], LowRank) == compressed
    assert isinstance(bank.deltas["proj"], LowRank)
    without = build_bank(experts, base, method=TSVCompress(matrices="all"))
    assert "text_projection" not in without.ranks


@pytest.mark.parametrize("method", [TSVM(), TSVCompress()])
def test_more_tasks_than_directions(method: MergeMethod) -> None:
    """A matrix without a direction for each is merged as what is no matrix, and named."""
    experts, base = make(9)
    with pytest.warns(MergeWarning, match=r"proj.*: fewer directions than the 9 tasks, so merged as what is no matrix"):
        bank = build_bank(experts, base, method=method)
    tau = torch.stack([expert["proj"] - base["proj"] for expert in experts.values()])
    share = 1 if isinstance(method, TSVCompress) else 9
    torch.testing.assert_close(bank.deltas["proj"], tau / share)


def test_directions_that_do_not_fit_side_by_side() -> None:
    experts, base = make(3)
    with pytest.raises(MergeError, match=r"rank_ratio=0\.5 keeps 4 directions of .* each of 3 tasks, 12 of 9") as error:
        build_bank(experts, base, method=TSVM(rank_ratio=0.5))
    assert error.value.weight == MATRIX
    assert "\n" not in str(error.value)
    assert "take at most 0.3333" in str(error.value)
    bank = build_bank(experts, base, method=TSVM(rank_ratio=1 / 3))
    assert bank.ranks == build_bank(experts, base, method=TSVM()).ranks


@pytest.mark.parametrize("method", [TSVM, TSVCompress])
@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5, float("nan")])
def test_ratio_outside_its_range(method: type[TSVM] | type[TSVCompress], ratio: float) -> None:
    with pytest.raises(MergeError, match=r"rank_ratio=.*(outside|expected a finite number)"):
        method(rank_ratio=ratio)


@given(st.integers(1, 4), st.integers(8, 14), st.integers(8, 14), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_directions_of_all_tasks_are_orthonormal(tasks: int, m: int, n: int, seed: int) -> None:
    tau = torch.randn(tasks, m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rank = min(m, n) // tasks
    merged = tsv_merge(tau, rank)
    for side in (merged.U, merged.V):
        joined = torch.cat([*side], 1)
        torch.testing.assert_close(joined.T @ joined, torch.eye(tasks * rank, dtype=torch.float64))
    torch.testing.assert_close(merged.S, torch.linalg.svdvals(tau)[:, :rank])


def test_task_vectors_without_overlap_are_only_added() -> None:
    """Whitening has nothing to do where no two tasks share a direction on either side."""
    tau = torch.zeros(2, 8, 6, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    tau[0, :4, :3] = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    tau[1, 4:, 3:] = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(tsv_merge(tau, 3).to_dense(), tau)
