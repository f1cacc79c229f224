"""What two banks differ in, against numpy on their experts' weights."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_merge import CART, IsoC, TaskArithmetic, TaskBank, build_bank
from lit_merge.bank.differences import differences


@pytest.fixture
def bank(tiny: Any) -> TaskBank:
    return build_bank(tiny.experts, method=CART(rank_ratio=0.5, scaling=1.5))


def test_distances_are_those_of_the_weights(bank: TaskBank) -> None:
    other = bank.truncate(0.25)
    found = differences(bank, other)
    assert not found.none
    assert found.ranks == {name: (rank, other.ranks[name]) for name, rank in bank.ranks.items()}
    assert not any(found.origin.values())
    for task in bank.tasks:
        ours, theirs = bank.expert(task), other.expert(task)
        wanted = {n: np.linalg.norm(theirs[n] - ours[n]) / np.linalg.norm(ours[n]) for n in ours if ours[n].any()}
        for name, value in wanted.items():
            assert found.experts[task][name] == pytest.approx(value, rel=1e-3, abs=1e-6)
        assert found.whole_experts[task] == pytest.approx(apart(ours, theirs), rel=1e-3)


def apart(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The relative distance of two models, all weights as one vector."""
    one, other = (np.concatenate([of[name].double().numpy().ravel() for name in ours]) for of in (ours, theirs))
    return float(np.linalg.norm(other - one) / np.linalg.norm(one))


def test_a_weight_that_was_zero(bank: TaskBank) -> None:
    """As a bias of an untrained model: its own difference is infinite, that of the whole model is not."""
    name = "ln_post.bias"
    assert not bank.origin[name].any()
    other = replace(bank, origin={**bank.origin, name: torch.full_like(bank.origin[name], 0.5)})
    found = differences(bank, other)
    assert found.merge[name] == found.origin[name] == float("inf")
    assert found.whole_merge == pytest.approx(apart(bank.merge(), other.merge()), rel=1e-6)
    for task in bank.tasks:
        assert found.whole_experts[task] == pytest.approx(apart(bank.expert(task), other.expert(task)), rel=1e-6)


def test_coefficients_tasks_and_weights(bank: TaskBank, tiny: Any) -> None:
    assert differences(bank, bank).none
    moved = bank.coefficients.clone()
    moved[1, 3] += 0.25
    found = differences(bank, replace(bank, coefficients=moved))
    assert found.coefficients == {"alpha": 0.0, "beta": 0.25, "gamma": 0.0}
    assert sum(value > 0 for value in found.merge.values()) == 1
    assert not any(value for one in found.experts.values() for value in one.values())
    fewer = {task: tiny.experts[task] for task in ("alpha", "gamma")}
    found = differences(bank, build_bank(fewer, tiny.base, method=TaskArithmetic()))
    assert found.tasks == (["beta"], [])
    assert found.method
    assert list(found.experts) == ["alpha", "gamma"]
    found = differences(bank, build_bank(tiny.experts, tiny.base, method=IsoC()))
    assert not found.experts
    assert any(found.merge.values())
