"""One step of adaptation: task by task it has the gradient of the one graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_merge import AdaRank, Experts, IsoC, MergedModel, MergeError, Stage, TaskArithmetic, build_bank
from lit_merge.adaptation.step import adaptation_step
from lit_merge.networks import Network
from lit_merge.objectives import Entropy, ExpertAgreement, divergence

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Any]


def gradients(model: MergedModel, batch: dict[str, Tensor], precision: torch.dtype | None = None) -> list[Tensor]:
    """Of everything that is learnt, at the model's own coefficients."""
    model.zero_grad()
    with torch.autocast("cpu", precision, enabled=precision is not None):
        loss = model_step(model, batch)
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]


def model_step(model: MergedModel, batch: dict[str, Tensor]) -> Tensor:
    how = model.objective, model.expert_logits, model.options.microbatch
    return adaptation_step(model.network, model.merged_weights(), batch, *how).loss / 2  # two accumulated batches


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("ranks", [None, AdaRank(0.3)], ids=["coefficients", "masks"])
@pytest.mark.parametrize("objective", [Entropy(), ExpertAgreement()], ids=["entropy", "agreement"])
def test_task_by_task_equals_the_one_graph(
    objective: Any, ranks: AdaRank | None, precision: torch.dtype | None, make_model: Make, tiny: Any
) -> None:
    batch = next(iter(tiny.data(batch_size=5).train_dataloader()))
    options = {"objective": objective, "ranks": ranks, "stages": [Stage("layer")]}
    whole = gradients(make_model(**options), batch, precision)
    parts = gradients(make_model(**options, microbatch="task"), batch, precision)
    again = gradients(make_model(**options, microbatch="task", gradient_checkpointing=True), batch, precision)
    assert len(whole) == len(parts) == (1 if ranks is None else 9)
    tolerance = 1e-4 if precision is None else 0.1
    for one, other, third in zip(whole, parts, again, strict=True):
        assert one.norm() > 0
        assert (one - other).norm() <= tolerance * one.norm()
        assert torch.equal(other, third) or (other - third).norm() <= 1e-5 * other.norm()


def test_predictions_are_those_before_the_step(make_model: Make, tiny: Any) -> None:
    batch = next(iter(tiny.data().train_dataloader()))
    found = []
    for microbatch in ("all", "task"):
        model = make_model(microbatch=microbatch)
        with torch.no_grad():
            expected = {task: logits.argmax(-1) for task, logits in model(batch).items()}
        step = adaptation_step(
            model.network, model.merged_weights(), batch, Entropy(), model.expert_logits, model.options.microbatch
        )
        assert all(torch.equal(step.predictions[task], expected[task]) for task in tiny.tasks)
        torch.testing.assert_close(torch.stack(list(step.losses.values())).mean(), step.loss.detach())
        found.append(step.loss.item())
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_activations_of_one_task_at_a_time(make_model: Make, tiny: Any) -> None:
    """Bytes that autograd keeps, counted at their most: they must not grow with the number of tasks."""
    batch = next(iter(tiny.data(batch_size=8).train_dataloader()))
    most = {}
    for microbatch, checkpointing in (("all", False), ("task", False), ("task", True)):
        model, kept = make_model(microbatch=microbatch, gradient_checkpointing=checkpointing), Saved()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda one: one.value):
            model_step(model, batch).backward()
        most[microbatch, checkpointing] = kept.most
    assert most["task", False] < 0.6 * most["all", False]
    assert most["task", True] < 0.9 * most["task", False]


class Saved:
    """What autograd keeps, and the most of it at a time, in bytes."""

    def __init__(self) -> None:
        self.alive: dict[int, int] = {}
        self.most = 0

    def pack(self, value: Tensor) -> "Kept":
        kept = Kept(value, self.alive)
        self.most = max(self.most, sum(self.alive.values()))
        return kept


class Kept:
    """A tensor that is counted for as long as it lives."""

    def __init__(self, value: Tensor, alive: dict[int, int]) -> None:
        self.value, self.alive = value, alive
        alive[id(self)] = value.nbytes

    def __del__(self) -> None:
        self.alive.pop(id(self), None)


def test_a_fit_task_by_task_ends_where_the_other_does(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    ends = []
    for microbatch in ("all", "task"):
        model = make_model(microbatch=microbatch, stages=[Stage("tied", 3, 0.05), Stage("layer", 3, 0.01)])
        make_trainer(max_steps=6, accumulate_grad_batches=2).fit(model, datamodule=tiny.data())
        ends.append(model.coefficients().detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)
    assert (ends[0] - 1).abs().min() > 0.01


def test_experts_are_those_that_were_merged(make_model: Make, tiny: Any) -> None:
    """Without files, what the bank holds: of task arithmetic that is the expert itself."""
    experts = Experts(tiny.experts, tiny.base)
    bank = build_bank(experts, method=TaskArithmetic())
    network = tiny.encoder()
    images = next(iter(tiny.data().train_dataloader()))
    expected = {}
    for named in (experts, None):
        model = MergedModel(bank, network, ExpertAgreement(), experts=named)
        weights = model.merged_weights()
        step = adaptation_step(network, weights, images, model.objective, model.expert_logits)
        expected[named] = step.losses
    with torch.no_grad():
        logits = model(images)
        for task in tiny.tasks:
            own = {name: experts.checkpoints[task].read(name) for name in experts.shapes}
            wanted = divergence(logits[task], network(own, {task: images[task]})[task])
            for losses in expected.values():
                torch.testing.assert_close(losses[task], wanted, rtol=1e-3, atol=1e-5)


def test_options_that_do_not_go_together(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    with pytest.raises(MergeError, match="needs microbatch=task"):
        make_model(gradient_checkpointing=True)
    with pytest.raises(MergeError, match="sharpness=-1"):
        make_model(sharpness=-1.0)
    with pytest.raises(MergeError, match="leave accumulate_grad_batches at 1"):
        make_trainer(max_steps=2, accumulate_grad_batches=2).fit(make_model(sharpness=0.1), datamodule=tiny.data())

    class Plain(Network):
        def __init__(self) -> None:
            super().__init__()

        def prepare(self, inputs: Tensor) -> Tensor:
            return inputs

    with pytest.raises(MergeError, match="Plain has no gradient checkpointing"):
        Plain().checkpoint_gradients()
    model = make_model(IsoC(), objective=ExpertAgreement())
    with pytest.raises(MergeError, match="one delta for all tasks"):
        make_trainer(max_steps=1).fit(model, datamodule=tiny.data())
