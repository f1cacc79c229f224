"""AdaRank: masks over singular directions, against the dense formula and through a real fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_merge import (
    CART,
    AdaRank,
    IsoC,
    LowRank,
    MergedModel,
    MergeError,
    Stage,
    TaskArithmetic,
    TaskBank,
    build_bank,
)
from lit_merge.adaptation.rank_masks import RankMasks
from lit_merge.adaptation.trainer import Trainer
from lit_merge.bank.low_rank import rank_of

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]


def test_value_and_gradients_are_those_of_the_straight_through_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    low = LowRank.from_dense(torch.randn(3, 9, 6, generator=generator, dtype=torch.float64), 6)
    origin, probe = torch.randn(2, 9, 6, generator=generator, dtype=torch.float64)
    coefficients = torch.rand(3, generator=generator, dtype=torch.float64).requires_grad_()
    logits = torch.randn(3, 6, generator=generator, dtype=torch.float64).requires_grad_()
    merged = low.weighted_sum(origin, coefficients, logits)
    (merged.tanh() * probe).sum().backward()

    expected, grad = origin.clone(), (1 - merged.detach().tanh() ** 2) * probe
    for t in range(3):
        for r in range(6):
            direction = low.S[t, r] * torch.outer(low.U[t, :, r], low.V[t, :, r])
            z = logits[t, r].item()
            expected += coefficients[t].item() * direction * (z > 0)
            soft = torch.sigmoid(torch.tensor(z / 10, dtype=torch.float64))
            wanted = coefficients[t].item() * (direction * grad).sum() * soft * (1 - soft) / 10
            torch.testing.assert_close(logits.grad[t, r], wanted)  # type: ignore[index]
    torch.testing.assert_close(merged.detach(), expected)
    for t in range(3):
        kept = low.S[t] * (logits[t] > 0)
        torch.testing.assert_close(coefficients.grad[t], (low.U[t] * kept @ low.V[t].T * grad).sum())  # type: ignore[index]


def test_a_selected_bank_merges_to_the_same(tiny: Any) -> None:
    bank = build_bank(tiny.experts, method=CART(rank_ratio=1.0, scaling=1.3))
    generator = torch.Generator().manual_seed(1)
    logits = {
        name: torch.randn(d.S.shape, generator=generator) for name, d in bank.deltas.items() if name in bank.ranks
    }
    selected = bank.select({name: z > 0 for name, z in logits.items()})
    selected_merged = selected.merge()
    for name, value in bank.merge(logits=logits).items():
        torch.testing.assert_close(selected_merged[name], value, rtol=1e-5, atol=1e-6)
    for name, rank in selected.ranks.items():
        assert rank == int((logits[name] > 0).sum(-1).max())
        assert (selected.deltas[name].S.diff(dim=-1) <= 0).all()  # type: ignore[union-attr]


def test_no_direction_left_is_the_origin() -> None:
    low = LowRank.from_dense(torch.randn(2, 5, 4), 4)
    assert not low.select(torch.zeros(2, 4, dtype=torch.bool)).to_dense().any()


def test_starts_as_the_bank_of_that_rank(make_model: Make) -> None:
    model = make_model(CART(rank_ratio=1.0, scaling=1.5), ranks=AdaRank(0.25))
    small = make_model(CART(rank_ratio=0.25, scaling=1.5))
    for name, value in small.merged_weights().items():
        torch.testing.assert_close(model.merged_weights()[name], value, rtol=1e-4, atol=1e-5)
    for name, logits in model.masks().items():  # type: ignore[misc]
        assert (logits > 0).sum(-1).tolist() == [rank_of(0.25, *model.bank.deltas[name].shape[1:])] * 3


@pytest.mark.parametrize("method", [CART(rank_ratio=1.0, scaling=1.5), IsoC()], ids=["cart", "shared delta"])
def test_a_fit_learns_masks_and_leaves_a_bank_without_dropped_directions(
    method: Any, make_model: Make, make_trainer: MakeTrainer, tiny: Any
) -> None:
    model = make_model(method, stages=[Stage("tied", 2, 0.01), Stage("layer", 4, 0.01)], ranks=AdaRank(0.5, lr=0.05))
    before = {name: logits.detach().clone() > 0 for name, logits in model.masks().items()}  # type: ignore[misc]
    make_trainer(max_steps=6).fit(model, datamodule=tiny.data())
    after = {name: logits.detach() > 0 for name, logits in model.masks().items()}  # type: ignore[misc]
    assert any((after[name] & ~before[name]).any() for name in after), "no dropped direction came back"
    assert any((before[name] & ~after[name]).any() for name in after), "no kept direction was dropped"
    bank = model.to_bank()
    assert max(bank.ranks.values()) <= max(int(kept.sum(-1).max()) for kept in after.values())
    merged = bank.merge()
    for name, value in model.merged_weights().items():
        torch.testing.assert_close(merged[name], value.detach(), rtol=1e-4, atol=1e-5)


def test_ranks_wait_until_the_scale_is_found(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = make_model(
        CART(rank_ratio=1.0, scaling=1.5), stages=[Stage("tied", 3, 0.05), Stage("layer", 3, 0.01)], ranks=AdaRank(0.5)
    )
    start = {name: logits.detach().clone() for name, logits in model.masks().items()}  # type: ignore[misc]
    make_trainer(max_steps=3).fit(model, datamodule=tiny.data())
    assert all(torch.equal(logits, start[name]) for name, logits in model.masks().items())  # type: ignore[misc]
    alone = make_model(CART(rank_ratio=1.0, scaling=1.5), stages=[Stage("tied", 3, 0.05)], ranks=AdaRank(0.5))
    make_trainer(max_steps=3).fit(alone, datamodule=tiny.data())
    assert not all(torch.equal(logits, start[name]) for name, logits in alone.masks().items())  # type: ignore[misc]


def test_masks_come_back_from_a_checkpoint(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Any
) -> None:
    def make() -> MergedModel:
        return make_model(CART(rank_ratio=1.0, scaling=1.5), stages=[Stage("layer", 4, 0.01)], ranks=AdaRank(0.5, 0.05))

    trainer, model = make_trainer(max_steps=2), make()
    trainer.fit(model, datamodule=tiny.data())
    trainer.save_checkpoint(tmp_path / "step2.ckpt")
    whole, resumed = make(), make()
    make_trainer(max_steps=4).fit(whole, datamodule=tiny.data())
    make_trainer(max_steps=4).fit(resumed, datamodule=tiny.data(), ckpt_path=tmp_path / "step2.ckpt", weights_only=True)
    with pytest.raises(MergeError, match="AdaRank must be on in both"):
        make_trainer(max_steps=4).fit(
            make_model(CART(rank_ratio=1.0, scaling=1.5)),
            datamodule=tiny.data(),
            ckpt_path=tmp_path / "step2.ckpt",
            weights_only=True,
        )
    assert torch.equal(whole.coefficients(), resumed.coefficients())
    for name, logits in whole.masks().items():  # type: ignore[misc]
        assert torch.equal(logits, resumed.masks()[name])  # type: ignore[misc]


def test_banks_without_directions_are_refused(tiny: Any) -> None:
    bank: TaskBank = build_bank(tiny.experts, tiny.base, method=TaskArithmetic())
    with pytest.raises(MergeError, match="TaskArithmetic has no low-rank deltas"):
        RankMasks(bank, 0.5)
    with pytest.raises(MergeError, match="outside"):
        AdaRank(0.0)
    with pytest.raises(MergeError, match="lr=0"):
        AdaRank(0.5, lr=0.0)
