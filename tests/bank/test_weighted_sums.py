"""Sums over tasks: value and gradient on every path, the same bits wherever a bank lies, and nothing kept elsewhere."""

import pytest
import torch
from torch import Tensor

from lit_merge.bank import weighted_sums
from lit_merge.bank.weighted_sums import dense_sum, low_rank_sum

TASKS, M, N, RANK = 3, 9, 6, 2


def dense(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.rand(TASKS, generator=generator, dtype=dtype)
    origin = torch.randn(M, N, generator=generator, dtype=dtype)
    return coefficients, origin, torch.randn(TASKS, M, N, generator=generator, dtype=dtype)


def factors(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((TASKS, M, RANK), (TASKS, RANK), (TASKS, N, RANK))
    u, s, v = (torch.ones(shape, dtype=dtype, device=device) for shape in shapes)
    return u, s, v


@pytest.mark.parametrize("aligned", [False, True], ids=["element by element", "one product"])
def test_value_and_gradient_of_dense_deltas(aligned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of an accelerator as well, on the CPU."""
    monkeypatch.setattr(weighted_sums, "_aligned", lambda device: aligned)
    coefficients, origin, deltas = dense()
    expected = origin + torch.einsum("t,tmn->mn", coefficients, deltas)
    torch.testing.assert_close(dense_sum(coefficients, origin, deltas), expected)
    torch.testing.assert_close(dense_sum(coefficients, origin.mT, deltas.mT), expected.mT)
    assert torch.autograd.gradcheck(lambda c: dense_sum(c, origin, deltas), coefficients.requires_grad_())


def test_half_precision_deltas_are_summed_in_the_precision_of_the_origin() -> None:
    coefficients, origin, deltas = dense(torch.float32)
    half = deltas.bfloat16()
    leaf = coefficients.requires_grad_()
    total = dense_sum(leaf, origin, half)
    torch.testing.assert_close(total, origin + torch.einsum("t,tmn->mn", coefficients, half.float()))
    total.sum().backward()
    torch.testing.assert_close(leaf.grad, half.float().sum((1, 2)))


def test_the_same_bits_wherever_the_deltas_begin() -> None:
    """A bank in memory and one that is mapped from a file: products of whole tensors differ in the last bit."""
    count = 100_003
    values, gradient = torch.randn(TASKS * count), torch.randn(count)
    found = []
    for offset in (0, 1, 3, 6, 9):
        moved = torch.empty(TASKS * count + 16)[offset : offset + TASKS * count].copy_(values).view(TASKS, count)
        leaf = torch.full((TASKS,), 0.3, requires_grad=True)
        total = dense_sum(leaf, gradient, moved)
        total.backward(gradient)
        found.append((total.detach(), leaf.grad))
    for total, slope in found[1:]:
        assert torch.equal(total, found[0][0])
        assert torch.equal(slope, found[0][1])


@pytest.mark.parametrize("kind", ["dense", "low rank", "masked"])
def test_factors_stay_where_they_are(kind: str) -> None:
    """With coefficients on another device, of which `meta` stands for any: there the sum and its gradient lie, and what
    is kept for the backward are the factors where they were."""
    leaf = torch.ones(TASKS, device="meta", requires_grad=True)
    logits = torch.ones(TASKS, RANK, device="meta", requires_grad=True) if kind == "masked" else None
    own = dense(torch.float32)[2:] if kind == "dense" else factors()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        if kind == "dense":
            total = dense_sum(leaf, torch.zeros(M, N), *own)
        else:
            total = low_rank_sum(leaf, torch.zeros(M, N), *own, logits)
    assert total.device.type == "meta"
    assert {one.data_ptr() for one in own} <= {one.data_ptr() for one in kept}
    assert sum(one.nbytes for one in kept if not one.is_meta) == sum(one.nbytes for one in own)
    total.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.is_meta
    assert logits is None or logits.grad is not None


def test_dense_deltas_take_no_memory_for_every_task() -> None:
    """A backward that made a product for every task would be slow for its memory alone."""
    coefficients, origin, deltas = dense(torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        dense_sum(coefficients.requires_grad_(), origin, deltas)
    assert [one.data_ptr() for one in kept] == [deltas.data_ptr()]
