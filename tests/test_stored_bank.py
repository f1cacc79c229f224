"""A bank that stays on the CPU while its model computes elsewhere."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_merge import AdaRank, MergedModel, Stage, TaskArithmetic, stored_bank
from lit_merge.objectives import ExpertAgreement
from lit_merge.stored_bank import StoredBank

Make = Callable[..., MergedModel]


@pytest.mark.parametrize(
    "options", [{}, {"method": TaskArithmetic(0.3), "objective": ExpertAgreement()}, {"ranks": AdaRank(0.3)}]
)
def test_a_fit_from_a_streamed_bank_is_the_same(
    options: dict[str, Any], make_model: Make, make_trainer: Any, tiny: Any
) -> None:
    ends = []
    for place in ("auto", "cpu"):
        model = make_model(**options, bank_device=place, stages=[Stage("layer", 3, 0.01)], microbatch="task")
        make_trainer(max_steps=3).fit(model, datamodule=tiny.data())
        ends.append(model.to_bank())
        names = [name for name, _ in model.named_parameters() if name.startswith("stored.")]
        assert bool(names) is (place == "auto")
    assert torch.equal(ends[0].coefficients, ends[1].coefficients)
    assert all(torch.equal(one, ends[1].tensors()[name]) for name, one in ends[0].tensors().items())


def test_a_model_moves_without_its_streamed_bank(make_model: Make) -> None:
    model = make_model(bank_device="cpu", ranks=AdaRank(0.3)).to("meta")
    weights = model.bank.merge(model.coefficients(), None, model.masks())
    assert all(value.is_meta for value in weights.values())
    assert not any(value.is_meta for value in (*model.bank.origin.values(), model.bank.deltas["conv1.weight"]))
    assert all(value.is_meta for value in model.expert_weights("beta").values())
    torch.stack([value.sum() for value in weights.values()]).sum().backward()
    assert model.coefficients.offset.grad.is_meta
    assert all(value.is_meta for value in make_model().to("meta").bank.origin.values())


def test_what_does_not_fit_stays(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_model().to_bank()
    stored, meta = StoredBank(bank), torch.device("meta")
    stored.settle(meta)
    assert stored.streamed is None
    monkeypatch.setattr(stored_bank, "fits", lambda nbytes, device: nbytes < bank.nbytes)
    stored.settle(torch.device("cpu"))
    assert stored.streamed is None
    stored.settle(meta)
    assert stored.streamed is not None
    assert not list(stored.parameters())
    found = stored.open(torch.device("cpu"))
    assert all(torch.equal(one, found.tensors()[name]) for name, one in bank.tensors().items())
