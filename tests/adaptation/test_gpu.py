"""The same code on a GPU, wherever there is one: `scripts/test -m gpu -n 0`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_merge import AdaRank, Correction, MergedModel, Stage, TaskArithmetic, evaluate
from lit_merge.adaptation.step import adaptation_step
from lit_merge.adaptation.stored_bank import StoredBank, fits
from lit_merge.objectives import ExpertAgreement

Make = Callable[..., MergedModel]
# Directions by what the bank holds of the experts, and a correction.
TAUGHT: dict[str, Any] = {
    "stages": [Stage("tied", 2, 0.05), Stage("direction", 3, 0.01, relative=True, decay="cosine")],
    "objective": ExpertAgreement(),
    "correction": Correction(2, 0.001),
}
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize("place", ["auto", "cpu"])
@pytest.mark.parametrize("microbatch", ["all", "task"])
@pytest.mark.parametrize(
    "options",
    [{}, {"method": TaskArithmetic(0.3), "objective": ExpertAgreement()}, {"ranks": AdaRank(0.3)}, TAUGHT],
    ids=["cart", "dense", "masks", "taught"],
)
def test_a_fit_ends_where_it_does_on_the_cpu(
    options: dict[str, Any], microbatch: str, place: str, make_model: Make, make_trainer: Any, tiny: Any
) -> None:
    ends = []
    for accelerator in ("cpu", "gpu"):
        steps = {"stages": [Stage("tied", 2, 0.05), Stage("layer", 3, 0.01)]}
        model = make_model(**steps | options, microbatch=microbatch, bank_device=place)
        trainer = make_trainer(max_steps=5, accelerator=accelerator)
        trainer.fit(model, datamodule=tiny.data())
        trainer.test(model, datamodule=tiny.data(), verbose=False)
        bank = model.to_bank()
        ends.append(({"coefficients": bank.coefficients, **bank.learnt}, model.scores))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=2e-3)
    assert all(abs(score.entropy - ends[1][1][task].entropy) < 0.02 for task, score in ends[0][1].items())


@pytest.mark.parametrize(
    "options",
    [{"stages": [Stage("layer")]}, {"stages": [Stage("layer")], "ranks": AdaRank(0.3)}, TAUGHT],
    ids=["cart", "masks", "taught"],
)
def test_merges_that_are_replayed_are_those_of_the_bank(options: dict[str, Any], make_model: Make) -> None:
    model = make_model(**options).cuda()
    model.coefficients.set_granularity(model.stages[-1].granularity)
    learnt = [one for one in model.parameters() if one.requires_grad]
    for step in range(6):
        if step == 3:
            model.set_rank(0.1)
        logits = None if model.masks is None else model.masks()
        values = model.coefficients.values()
        bank, each = model.bank, model.coefficients.by_weight(values)
        expected = bank.merge(each, model.compute_dtype, logits, "canonical", model._learnt(bank, values))
        merged = model.merged_weights()
        grown = [
            torch.autograd.grad(sum(value.square().sum() for value in some.values()), learnt, allow_unused=True)
            for some in (expected, merged)
        ]
        torch.testing.assert_close(merged, expected)
        torch.testing.assert_close(*grown, rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            for one in learnt:
                one.add_(0.01 * torch.randn_like(one))


# Of torch's own compiler, in some releases.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("compile", [False, True])
def test_bf16_is_near_float32(compile: bool, make_model: Make, tiny: Any) -> None:
    batch = {task: x.cuda() for task, x in next(iter(tiny.data(batch_size=6).train_dataloader())).items()}
    found = []
    for dtype in (None, torch.bfloat16):
        model = make_model(compile=compile and dtype is not None, stages=[Stage("layer")]).cuda()
        weights = model.merged_weights()
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            step = adaptation_step(model.network, weights, batch, model.objective, model.expert_logits)
        step.loss.backward()
        found.append(model.coefficients.offset.grad)
    assert (found[0] - found[1]).norm() <= 0.1 * found[0].norm()


def test_a_bank_that_is_too_large_is_pinned(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    assert fits(1, device)
    assert not fits(2**60, device)
    monkeypatch.setattr("lit_merge.adaptation.stored_bank.fits", lambda nbytes, device: False)
    stored = StoredBank(make_model().to_bank())
    stored.settle(device)
    assert not list(stored.parameters())
    assert all(value.is_pinned() for value in stored.open(torch.device("cpu")).tensors().values())
    weights = stored.open(device).merge()
    assert all(value.is_cuda for value in weights.values())


@pytest.mark.parametrize("route", ["prototypes", "entropy", "layers"])
def test_routes_are_those_of_the_cpu(route: Any, make_model: Make, tiny: Any) -> None:
    bank, found = make_model().to_bank(), []
    for accelerator in ("cpu", "gpu"):
        found.append(evaluate(bank, tiny.encoder(), tiny.data(), route=route, accelerator=accelerator))
    assert all(abs(score.entropy - found[1][task].entropy) < 0.05 for task, score in found[0].items())
