"""What must hold of CART (METHODS: arXiv 2412.12153)."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_merge import CART, LowRank, MergeError, MergeWarning, WeightAveraging, build_bank
from lit_merge.bank.low_rank import rank_of
from lit_merge.methods.cart import cart

NAMES = ("resblocks.0.attn.in_proj_weight", "resblocks.0.mlp.c_fc.weight", "resblocks.0.ln_1.weight", "proj")


def experts(tasks: int, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {NAMES[0]: (9, 6), NAMES[1]: (5, 7), NAMES[2]: (6,), NAMES[3]: (6, 4)}
    return {
        f"task{t}": {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
        for t in range(tasks)
    }


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-10)


@given(st.integers(3, 6), st.floats(-5, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_full_rank_is_weight_averaging(tasks: int, scaling: float, seed: int) -> None:
    models = experts(tasks, seed)
    close(
        build_bank(models, method=CART(rank_ratio=1.0, scaling=scaling)).merge(),
        build_bank(models, method=WeightAveraging()).merge(),
    )


@given(st.floats(0.01, 1), st.floats(-5, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_two_experts_give_their_average(ratio: float, scaling: float, seed: int) -> None:
    models = experts(2, seed)
    with pytest.warns(MergeWarning, match="CART of two experts"):
        bank = build_bank(models, method=CART(rank_ratio=ratio, scaling=scaling))
    close(bank.merge(), build_bank(models, method=WeightAveraging()).merge())


def test_one_expert_is_returned() -> None:
    models = experts(1)
    with pytest.warns(MergeWarning, match="one expert"):
        bank = build_bank(models, method=CART(rank_ratio=0.2, scaling=3.0))
    close(bank.merge(), models["task0"])


def test_three_experts_bring_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_bank(experts(3), method=CART())


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_ratio_outside_its_range(ratio: float) -> None:
    with pytest.raises(MergeError, match=r"rank_ratio=.*(outside|expected a finite number)"):
        CART(rank_ratio=ratio)


def test_indexing_at_full_rank_returns_each_expert() -> None:
    models = experts(4)
    bank = build_bank(models, method=CART(rank_ratio=1.0, scaling=0.3))
    for task, weights in models.items():
        close(bank.expert(task), weights)


@given(st.integers(0, 99), st.floats(0.1, 1))
@settings(max_examples=20, deadline=None)
def test_a_vector_that_all_share_only_shifts(seed: int, ratio: float) -> None:
    models, (shift,) = experts(4, seed), experts(1, seed + 1000).values()
    moved = {task: {n: w + shift[n] for n, w in weights.items()} for task, weights in models.items()}
    method = CART(rank_ratio=ratio, scaling=1.7)
    plain, shifted = build_bank(models, method=method), build_bank(moved, method=method)
    close(shifted.merge(), {name: w + shift[name] for name, w in plain.merge().items()})
    for name, delta in plain.deltas.items():
        other = shifted.deltas[name]
        dense, dense_other = (d.to_dense() if isinstance(d, LowRank) else d for d in (delta, other))
        torch.testing.assert_close(dense_other, dense, rtol=1e-9, atol=1e-9)


def test_truncation_is_the_best_possible() -> None:
    stacked = torch.stack([weights[NAMES[0]] for weights in experts(5).values()])
    origin, deltas = cart(stacked, 2)
    for t, one in enumerate(stacked - origin):
        left = (one - deltas.to_dense()[t]).square().sum()
        torch.testing.assert_close(left, torch.linalg.svdvals(one)[2:].square().sum())


def test_only_block_matrices_are_decomposed() -> None:
    bank = build_bank(experts(3), method=CART(rank_ratio=0.5))
    assert bank.ranks == {NAMES[0]: 3, NAMES[1]: 2}
    assert set(bank.layers) == set(NAMES)


@pytest.mark.parametrize(("ratio", "rank"), [(0.001, 1), (0.08, 8), (0.29, 29), (0.07, 7), (1.0, 100)])
def test_rank_of_a_ratio(ratio: float, rank: int) -> None:
    assert rank_of(ratio, 100, 300) == rank_of(ratio, 300, 100) == rank
