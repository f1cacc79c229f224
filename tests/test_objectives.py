"""Entropy against its definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_merge.objectives import Entropy, entropy


@given(st.integers(1, 5), st.integers(2, 20), st.integers(0, 999), st.floats(0.1, 30))
def test_definition_and_range(batch: int, classes: int, seed: int, scale: float) -> None:
    logits = scale * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = logits.softmax(-1)
    found = entropy(logits)
    torch.testing.assert_close(found, -torch.special.xlogy(p, p).sum(-1))
    assert (found >= 0).all()
    assert (found <= math.log(classes) + 1e-12).all()


def test_confident_predictions_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value = Entropy()(logits)
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_per_log_classes() -> None:
    assert Entropy(per_log_classes=True)(torch.zeros(3, 7)).item() == pytest.approx(1)
    assert Entropy()(torch.zeros(3, 7)).item() == pytest.approx(math.log(7))


def test_gradient() -> None:
    assert torch.autograd.gradcheck(Entropy(), torch.randn(3, 4, dtype=torch.float64, requires_grad=True))
