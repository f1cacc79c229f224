"""What must hold of RegMean (METHODS: arXiv 2212.09849)."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_merge import Experts, MergeError, MergeWarning, RegMean, WeightAveraging, build_bank, collect_moments
from lit_merge import save_moments as save
from lit_merge.methods.regmean import regmean

shapes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7))
several = settings(max_examples=25, deadline=None)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(tasks: int, n: int, rows: int, seed: int) -> Tensor:
    x = draw(tasks, rows, n, seed=seed + 1000)
    return x.mT @ x / rows


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@given(shapes, st.floats(0, 0.99), st.integers(0, 99))
@several
def test_the_closed_form_with_the_experts_themselves(shape: tuple[int, int, int], shrinkage: float, seed: int) -> None:
    tasks, m, n = shape
    experts, base, C = draw(*shape, seed=seed), draw(m, n, seed=seed + 1), moments(tasks, n, 4 * n, seed)
    shrunk = [shrinkage * c + (1 - shrinkage) * c.diagonal().diag() for c in C]
    wanted = (torch.linalg.inv(sum(shrunk)) @ sum(c @ w.T for c, w in zip(shrunk, experts, strict=True))).T
    close(base + regmean(experts - base, C, shrinkage), wanted)


@given(shapes, st.floats(1e-8, 1e8), st.integers(0, 99))
@several
def test_one_factor_on_all_moments_changes_nothing(shape: tuple[int, int, int], factor: float, seed: int) -> None:
    # One row: singular but for the shrinkage, and singular without.
    vectors = draw(*shape, seed=seed)
    for rows in (1, 20):
        C = moments(shape[0], shape[2], rows, seed)
        for shrinkage in (0.9, 1.0):
            close(regmean(vectors, factor * C, shrinkage), regmean(vectors, C, shrinkage), 1e-5)


@given(shapes, st.floats(0, 1), st.integers(0, 99))
@several
def test_the_identity_gives_the_average(shape: tuple[int, int, int], shrinkage: float, seed: int) -> None:
    vectors = draw(*shape, seed=seed)
    close(regmean(vectors, torch.eye(shape[2]).double().expand(shape[0], -1, -1), shrinkage), vectors.mean(0))


@given(shapes, st.integers(1, 9), st.integers(0, 99))
@several
def test_experts_that_agree_are_returned(shape: tuple[int, int, int], rows: int, seed: int) -> None:
    """However few inputs there were: the ridge too is one of the averages."""
    one = draw(*shape[1:], seed=seed)
    C = moments(shape[0], shape[2], rows, seed)
    for shrinkage in (0.9, 1.0):
        close(regmean(one.expand(shape), C, shrinkage), one, 1e-6)


def test_it_answers_best_in_least_squares() -> None:
    vectors, x = draw(3, 4, 5, seed=0), draw(3, 20, 5, seed=1)
    found = regmean(vectors, x.mT @ x, shrinkage=1.0)

    def error(w: Tensor) -> Tensor:
        return sum((x[t] @ (w - vectors[t]).T).square().sum() for t in range(3))

    weight = found.clone().requires_grad_()
    error(weight).backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-10 * error(found)
    assert error(found) < error(vectors.mean(0))


def test_a_ridge_where_no_inputs_reach() -> None:
    """Literally: 1e-6 of the mean diagonal of Σ C_t, an equal share to every task."""
    vectors, C = draw(3, 4, 6, seed=0), moments(3, 6, 1, seed=2)
    C[:, :, 5], C[:, 5, :] = 0, 0  # no task ever has this feature
    for shrinkage in (0.9, 1.0):
        shrunk = shrinkage * C + (1 - shrinkage) * torch.stack([c.diagonal().diag() for c in C])
        ridge = 1e-6 * C.sum(0).diagonal().mean() / 3 * torch.eye(6).double()
        wanted = torch.linalg.solve((shrunk + ridge).sum(0), ((shrunk + ridge) @ vectors.mT).sum(0)).T
        found = regmean(vectors, C, shrinkage)
        close(found, wanted, 1e-6)
        close(found[:, 5], vectors.mean(0)[:, 5])
    close(regmean(vectors, torch.zeros_like(C)), vectors.mean(0))


def test_no_ridge_where_none_is_needed() -> None:
    """A feature a million times smaller than others is one still."""
    vectors = draw(2, 3, 2, seed=0)
    C = torch.stack([torch.tensor([1.0, 1e-12]).double().diag(), torch.tensor([1.0, 3e-12]).double().diag()])
    close(regmean(vectors, C)[:, 1], (vectors[0] + 3 * vectors[1])[:, 1] / 4)


# As a method

SHAPES = {"blocks.0.fc.weight": (4, 5), "blocks.0.fc.bias": (4,), "proj": (5, 3)}


def make(tasks: int = 3) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    base, *experts = (
        {name: draw(*shape, seed=10 * t + i) for i, (name, shape) in enumerate(SHAPES.items())}
        for t in range(tasks + 1)
    )
    return {f"task{t}": expert for t, expert in enumerate(experts)}, base


def given_moments() -> dict[str, dict[str, Tensor]]:
    both = {name: moments(3, SHAPES[name][1], 9, seed=i) for i, name in enumerate(("blocks.0.fc.weight", "proj"))}
    return {f"task{t}": {name: value[t] for name, value in both.items()} for t in range(3)}


def test_without_moments_it_is_the_average_and_says_so() -> None:
    experts, base = make()
    with pytest.warns(MergeWarning, match="RegMean: 2 of 2 matrices .* they are averaged") as said:
        bank = build_bank(experts, base, method=RegMean())
    assert len(said) == 1
    merged = bank.merge()
    for name, value in build_bank(experts, method=WeightAveraging()).merge().items():
        close(merged[name], value)


def test_a_weight_without_moments_of_one_task_is_averaged() -> None:
    experts, base = make()
    some = given_moments()
    del some["task2"]["proj"]
    with pytest.warns(MergeWarning, match=r"1 of 2 matrices .* \(proj\)"):
        found = build_bank(experts, base, method=RegMean(moments=some)).merge()
    close(found["proj"], sum(expert["proj"] for expert in experts.values()) / 3)
    full = build_bank(experts, base, method=RegMean(moments=given_moments())).merge()
    assert (full["proj"] - found["proj"]).norm() > 0.1
    close(full["blocks.0.fc.weight"], found["blocks.0.fc.weight"])


def test_one_shared_delta(tmp_path: Path) -> None:
    experts, base = make()
    bank = build_bank(experts, base, method=RegMean(moments=given_moments(), scaling=0.5))
    assert bank.shared
    assert bank.coefficients.tolist() == [[0.5, 0.5, 0.5]]
    save(tmp_path / "moments", given_moments(), Experts(experts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = build_bank(experts, base, method=RegMean(moments=str(tmp_path / "moments"), scaling=0.5))
    read_merged = read.merge()
    for name, value in bank.merge().items():
        assert torch.equal(read_merged[name], value)


def test_a_tower_answers_closer_to_its_experts(tiny: Any) -> None:
    """The summed squared output error of one weight over the collected inputs is below the average's."""
    opened = Experts(tiny.experts, tiny.base)
    found = collect_moments(opened, tiny.encoder(), tiny.data().unlabelled(), samples=13)
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    method = RegMean(moments=found, matrices=["*resblocks*"], shrinkage=1.0)
    merged = build_bank(opened, method=method).merge()[name].double()
    weights = {task: opened.checkpoints[task].read(name).double() for task in tiny.tasks}

    def error(w: Tensor) -> float:
        changes = ((w - weights[task], found[task][name]) for task in tiny.tasks)
        return float(sum((change @ C @ change.T).trace() for change, C in changes))

    assert error(merged) < 0.9 * error(sum(weights.values()) / 3)


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1, float("nan")])
def test_shrinkage_outside_its_range(shrinkage: float) -> None:
    with pytest.raises(MergeError, match=r"shrinkage=.*(outside|expected a finite number)"):
        RegMean(shrinkage=shrinkage)


def test_moments_that_do_not_fit() -> None:
    experts, base = make()
    wrong = given_moments() | {"task1": {"proj": torch.eye(5)}}
    with pytest.raises(MergeError, match=r"moments of task1: proj has shape \[5, 5\], expected \[3, 3\]"):
        build_bank(experts, base, method=RegMean(moments=wrong))
