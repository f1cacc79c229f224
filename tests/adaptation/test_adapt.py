"""The whole job in one call each."""

from typing import Any

import pytest
import torch

from lit_merge import CART, CollapseGuard, MergeError, Stage, WeightAveraging, adapt, build_bank, evaluate
from lit_merge.adaptation.run import run_fit

STAGES = [Stage("tied", 3, 0.05), Stage("layer", 2, 0.01)]


def test_adapt_is_what_fit_does(tiny: Any, make_model: Any, make_trainer: Any, tmp_path: Any) -> None:
    bank = build_bank(tiny.experts, tiny.base, method=CART(0.5, 1.0))
    found = adapt(bank, tiny.encoder(), tiny.data(), stages=STAGES, accelerator="cpu", guard=False, progress=False)
    model = make_model(stages=STAGES)
    run_fit(make_trainer(max_steps=5, callbacks=[CollapseGuard(every_n_steps=0)]), model, tiny.data(), tmp_path / "run")
    assert torch.equal(found.coefficients, model.to_bank().coefficients)
    assert found.fingerprint == bank.fingerprint
    assert not torch.equal(found.coefficients, bank.coefficients)


def test_adapting_in_less_memory_is_the_same_to_rounding(tiny: Any) -> None:
    bank = build_bank(tiny.experts, tiny.base, method=CART(0.5, 1.0))
    plain: dict[str, Any] = {"stages": STAGES, "accelerator": "cpu", "guard": False, "progress": False}
    small = plain | {"microbatch": "task", "gradient_checkpointing": True, "bank_device": "cpu"}
    expected, found = (adapt(bank, tiny.encoder(), tiny.data(), **options) for options in (plain, small))
    torch.testing.assert_close(found.coefficients, expected.coefficients, rtol=1e-4, atol=1e-5)
    with pytest.raises(MergeError, match="gradient_checkpointing needs microbatch=task"):
        adapt(bank, tiny.encoder(), tiny.data(), **plain, gradient_checkpointing=True)


def test_evaluate_counts_what_is_right(tiny: Any) -> None:
    bank, network, data = build_bank(tiny.experts, method=CART(0.5, 1.0)), tiny.encoder(), tiny.data()
    scores = evaluate(bank, network, data, accelerator="cpu")
    assert tuple(scores) == tiny.tasks
    weights = bank.merge()
    assert evaluate(weights, network, data, accelerator="cpu") == scores
    for task, (source, labels) in data.labelled("test").items():
        with torch.no_grad():
            logits = network(weights, {task: source.read(range(len(source)))})[task]
        assert scores[task].accuracy == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
        assert scores[task].images == len(source)


def test_what_does_not_belong_together(tiny: Any) -> None:
    bank, network = build_bank(tiny.experts, method=CART(0.5, 1.0)), tiny.encoder()
    with pytest.raises(MergeError, match="without data"):
        adapt(bank, network, tiny.data(tasks=["alpha"]))
    with pytest.raises(MergeError, match="no coefficients"):
        adapt(build_bank(tiny.experts, method=WeightAveraging()), network, tiny.data(), progress=False)
    with pytest.raises(MergeError, match="the network has a weight"):
        evaluate({}, network, tiny.data())
