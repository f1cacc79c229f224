"""Coefficients of directions and the shared correction of a bank: values, cutting, task indexing, files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_merge import CART, IsoC, LowRank, MergeError, TaskBank, build_bank
from lit_merge.bank.low_rank import combine

Pair = tuple[TaskBank, TaskBank]


def add_learnt(bank: TaskBank, seed: int = 0) -> TaskBank:
    """The bank with random coefficients of directions, and a correction of every weight."""
    g = torch.Generator().manual_seed(seed)
    learnt: dict[str, Tensor] = {}
    for name, value in bank.origin.items():
        if isinstance(delta := bank.deltas.get(name), LowRank):
            learnt[f"directions/{name}"] = torch.randn(delta.S.shape, generator=g)
            learnt[f"A/{name}"] = torch.randn(len(value), 3, generator=g)
            learnt[f"B/{name}"] = torch.randn(3, value.shape[1], generator=g)
        else:
            learnt[f"correction/{name}"] = torch.randn(value.shape, generator=g)
    return replace(bank, learnt=learnt)


@pytest.fixture(scope="module", params=[CART(rank_ratio=0.5, scaling=1.5), IsoC()], ids=["CART", "Iso-C"])
def pair(request: Any, tiny: Any) -> Pair:
    bank = build_bank(tiny.experts, tiny.base, method=request.param)
    return bank, add_learnt(bank)


def expected(bank: TaskBank, name: str, ranks: int | None = None) -> Tensor:
    """The merged weight in float64, sum by sum."""
    total = bank.origin[name].double()
    if f"A/{name}" in bank.learnt:
        total = total + bank.learnt[f"A/{name}"].double() @ bank.learnt[f"B/{name}"].double()
    if f"correction/{name}" in bank.learnt:
        total = total + bank.learnt[f"correction/{name}"].double()
    if (delta := bank.deltas.get(name)) is None:
        return total
    if isinstance(delta, LowRank):
        u, s, v = (one.double() for one in (delta.U, delta.S, delta.V))
        values = bank.learnt[f"directions/{name}"].double()
        return total + sum(
            (
                values[t, r] * s[t, r] * torch.outer(u[t, :, r], v[t, :, r])
                for t in range(len(s))
                for r in range(delta.rank)
            ),
            torch.zeros(()),
        )
    column = bank.coefficients[:, bank.layers.index(name)].double()
    return total + torch.einsum("t,t...->...", column, delta.double())


def test_merged_weights_are_the_sum_of_all_parts(pair: Pair) -> None:
    plain, bank = pair
    merged = bank.merge(naming="canonical")
    for name, value in merged.items():
        torch.testing.assert_close(value.double(), expected(bank, name), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(bank.weight(name), value)
    # Coefficients that are given stand in place of those of directions; the correction stays.
    given = bank.merge(0.5, naming="canonical")
    for name, value in plain.merge(0.5, naming="canonical").items():
        total = expected(replace(bank, deltas={}), name) - plain.origin[name].double()
        torch.testing.assert_close(given[name].double(), value.double() + total, rtol=1e-4, atol=1e-4)


def test_an_expert_is_what_it_was(pair: Pair) -> None:
    plain, bank = pair
    assert bank.fingerprint == plain.fingerprint
    if not plain.shared:
        before = plain.expert("beta")
        assert all(torch.equal(value, before[name]) for name, value in bank.expert("beta").items())


def test_gradients(pair: Pair) -> None:
    """Of single directions, with and without masks, and of both parts of a correction, from finite differences."""
    _, bank = pair
    name = next(iter(bank.ranks))
    delta = bank.low_rank(name)
    u, s, v = (one[:, :4].double() if one.dim() == 3 else one.double() for one in (delta.U, delta.S, delta.V))
    small = LowRank(u[..., :2], s[..., :2], v[..., :2])
    origin = torch.zeros(4, 4, dtype=torch.float64)
    column = torch.ones(len(s), dtype=torch.float64)

    def merged(directions: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return combine(origin, small, column, torch.float64, None, {"directions": directions, "A": a, "B": b})

    def masked(directions: Tensor) -> Tensor:
        logits = torch.tensor([0.1, -0.1], dtype=torch.float64).expand(len(s), 2)
        return combine(origin, small, column, torch.float64, logits, {"directions": directions})

    g = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((len(s), 2), (4, 3), (3, 4))]
    inputs = [one.requires_grad_() for one in inputs]
    assert torch.autograd.gradcheck(merged, inputs)
    assert torch.autograd.gradcheck(masked, inputs[:1])
    masked(inputs[0]).square().sum().backward()
    assert inputs[0].grad is not None
    assert not inputs[0].grad[:, 1].any()  # it sleeps


def test_cutting_keeps_what_contributes_most(pair: Pair) -> None:
    _, bank = pair
    cut = bank.truncate(rank_ratio=0.1)
    assert max(cut.ranks.values()) < max(bank.ranks.values())
    for name, rank in cut.ranks.items():
        found = (cut.directions[name].abs() * cut.low_rank(name).S).double()
        every = (bank.directions[name].abs() * bank.low_rank(name).S).double()
        torch.testing.assert_close(found, every.sort(dim=-1, descending=True).values[:, :rank])
        torch.testing.assert_close(cut.weight(name, torch.float64), expected(cut, name), rtol=1e-4, atol=1e-4)
    half = bank.truncate(energy=0.5)
    for name, rank in half.ranks.items():
        energy = (bank.directions[name] * bank.low_rank(name).S).double().square().sort(dim=-1, descending=True).values
        kept = energy.sum(0).cumsum(0) / energy.sum()
        assert kept[rank - 1] >= 0.5 * (1 - 1e-6)
        assert rank == 1 or kept[rank - 2] < 0.5
    assert bank.truncate().ranks == bank.ranks
    chosen = {name: torch.rand(bank.low_rank(name).S.shape) > 0.5 for name in bank.ranks}
    selected = bank.select(chosen)
    masked = replace(
        bank, learnt=dict(bank.learnt) | {f"directions/{n}": bank.directions[n] * kept for n, kept in chosen.items()}
    )
    for name in bank.ranks:
        torch.testing.assert_close(selected.weight(name), masked.weight(name), rtol=1e-4, atol=1e-4)


def test_files(pair: Pair, tmp_path: Path) -> None:
    plain, bank = pair
    plain.save(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "bank.json").read_text())["format_version"] == 1
    bank.save(tmp_path / "bank")
    about = json.loads((tmp_path / "bank" / "bank.json").read_text())
    assert about["format_version"] == 2
    loaded = TaskBank.load(tmp_path / "bank")
    assert all(torch.equal(value, bank.learnt[key]) for key, value in loaded.learnt.items())
    assert loaded.nbytes == bank.nbytes == about["nbytes"]
    merged = bank.merge()
    for name, value in loaded.merge().items():
        assert torch.equal(value, merged[name])
    half = loaded.to(torch.float16)
    assert {value.dtype for value in half.correction.values()} == {torch.float16}
    assert {value.dtype for value in half.directions.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda learnt, name: learnt | {f"directions/{name}": torch.ones(1, 1, 1)},
            r"directions/.* of shape \[1, 1, 1\]",
        ),
        (lambda learnt, name: learnt | {f"A/{name}": torch.ones(2, 3)}, r"A/.* of shape \[2, 3\]"),
        (lambda learnt, name: {k: v for k, v in learnt.items() if k != f"B/{name}"}, "no such tensor here"),
        (lambda learnt, name: learnt | {"correction/strange": torch.ones(2)}, "no such tensor here"),
        (lambda learnt, name: learnt | {f"B/{name}": torch.ones(3, 3, dtype=torch.long)}, "int64"),
    ],
)
def test_damaged_files(change: Any, message: str, tiny: Any, tmp_path: Path) -> None:
    bank = add_learnt(build_bank(tiny.experts, method=CART(rank_ratio=0.1)))
    name = next(iter(bank.ranks))
    replace(bank, learnt=change(dict(bank.learnt), name)).save(tmp_path / "bank")
    with pytest.raises(MergeError, match=message):
        TaskBank.load(tmp_path / "bank")
