"""LowRank: truncation, views, and the backward of the weighted sum."""

import torch

from lit_merge import LowRank


def make(dtype: torch.dtype = torch.float64, tasks: int = 3) -> LowRank:
    return LowRank.from_dense(torch.randn(tasks, 9, 6, generator=torch.Generator().manual_seed(0), dtype=dtype), 6)


def test_full_rank_is_exact_and_sorted() -> None:
    dense = torch.randn(3, 4, 7, dtype=torch.float64)
    low = LowRank.from_dense(dense, 4)
    torch.testing.assert_close(low.to_dense(), dense)
    assert (low.S.diff(dim=-1) <= 0).all()
    torch.testing.assert_close(low.energy().sum(-1), dense.square().sum((1, 2)))


def test_truncation_is_a_view_of_the_same_memory() -> None:
    low = make()
    cut = low.truncate(2)
    assert (cut.rank, cut.shape) == (2, low.shape)
    assert cut.U.untyped_storage().data_ptr() == low.U.untyped_storage().data_ptr()
    torch.testing.assert_close(cut.to_dense(), LowRank.from_dense(low.to_dense(), 2).to_dense())


def test_signs_do_not_depend_on_the_library() -> None:
    low = make()
    leading = low.U.gather(1, low.U.abs().argmax(1, keepdim=True))
    assert (leading > 0).all()


def test_weighted_sum_and_gradient_are_those_of_the_dense_sum() -> None:
    low, origin = make().truncate(3), torch.randn(9, 6, dtype=torch.float64)
    coefficients = torch.randn(3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(
        low.weighted_sum(origin, coefficients), origin + torch.einsum("t,tmn->mn", coefficients, low.to_dense())
    )
    assert torch.autograd.gradcheck(lambda c: low.weighted_sum(origin, c), coefficients)


def test_backward_keeps_the_factors_and_nothing_else() -> None:
    low, origin = make(torch.float32), torch.randn(9, 6)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        low.weighted_sum(origin, torch.ones(3, requires_grad=True))
    assert {t.data_ptr() for t in kept} <= {low.U.data_ptr(), low.S.data_ptr(), low.V.data_ptr()}


def test_half_precision_factors_lose_a_thousandth() -> None:
    low = make(torch.float32)
    half = low.to(torch.float16)
    assert half.S.dtype == torch.float32
    assert half.nbytes < 0.6 * low.nbytes
    torch.testing.assert_close(half.to_dense(), low.to_dense(), rtol=0, atol=5e-3)
