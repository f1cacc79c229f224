"""One step of adaptation: the losses of all tasks, from merged weights down to a scalar with a backward."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_merge.adaptation.options import MicroBatch
from lit_merge.errors import MergeError
from lit_merge.networks import Network
from lit_merge.objectives import Objective

Weights = Mapping[str, Tensor]


@dataclass
class Step:
    """What came of a step.

    Attributes:
        loss: mean over tasks, differentiable in whatever the weights were merged from.
        losses: of every task.
        predictions: the classes of every task's inputs, as predicted before the step changes anything.
    """

    loss: Float[Tensor, ""] = field(default_factory=lambda: torch.zeros(()))
    losses: dict[str, Tensor] = field(default_factory=dict)
    predictions: dict[str, Int[Tensor, " B"]] = field(default_factory=dict)

    def add(self, task: str, logits: Float[Tensor, "B C"], loss: Tensor) -> None:
        self.losses[task], self.predictions[task] = loss.detach(), logits.detach().argmax(-1)


def adaptation_step(
    network: Network,
    weights: Weights,
    batch: Mapping[str, Tensor],
    objective: Objective,
    expert: Callable[[str, Tensor], Tensor],
    microbatch: MicroBatch = "all",
) -> Step:
    """The objective of every task, averaged.

    Args:
        network: encoder and heads.
        weights: name → merged weight.
        batch: task → unlabelled inputs.
        objective: of one task's logits or features.
        expert: task and its inputs → its expert's logits or features; asked only where the objective looks at them.
        microbatch: `all` runs one forward over all tasks; `task` runs forward and backward task by task, in the memory
            of one task's activations: the same gradient to rounding.

    Raises:
        MergeError: an objective of features, of a network whose features are no tensor.
    """
    step = Step()

    def loss_of(task: str, features: Any, expected: Tensor | None) -> Tensor:
        with torch.set_grad_enabled(not objective.of_features):
            logits = network.heads(features, task)
        loss = objective(compared(features) if objective.of_features else logits, expected)
        step.add(task, logits, loss)
        return loss

    def ask(task: str) -> Tensor | None:
        return expert(task, batch[task]) if objective.asks_experts else None

    if microbatch == "all":
        expected = {task: ask(task) for task in batch}
        features = network.holding(weights, lambda: network.features(batch))
        step.loss = torch.stack([loss_of(task, value, expected[task]) for task, value in features.items()]).mean()
        return step

    def run(leaves: Weights, task: str, backward: Callable[[Tensor], None]) -> None:
        expected = ask(task)
        # Inside, so that blocks which are computed again in the backward find the weights.
        network.holding(
            leaves, lambda: backward(loss_of(task, network.features({task: batch[task]})[task], expected) / len(batch))
        )

    step.loss = one_by_one(weights, list(batch), run)
    return step


def compared(features: Any) -> Tensor:
    """Features as objectives compare them.

    Raises:
        MergeError: they are no tensor, as those of networks whose heads look at every token.
    """
    if not isinstance(features, Tensor):
        raise MergeError("ExpertAgreement: this network has no features (B, d) before its heads: take of=predictions")
    return features


def one_by_one(
    weights: Weights, tasks: list[str], run: Callable[[Weights, str, Callable[[Tensor], None]], None]
) -> Float[Tensor, ""]:
    """The sum of losses of merged weights, whose backward is done by the time that this answers.

    The weights become leaves; each task runs forward and backward into them; what is left is one gradient a weight.
    The backward of the answer hands it on to whatever the weights were computed from.

    Args:
        weights: name → merged weight, some of which have a graph behind them.
        tasks: what is run, in turn.
        run: gets the leaves, a task, and what to call with its loss.
    """
    leaves = {name: value.detach().requires_grad_(value.requires_grad) for name, value in weights.items()}
    total = torch.zeros(())

    def backward(loss: Tensor) -> None:
        nonlocal total
        # Backwards run in the precision of their forwards, whatever autocast says meanwhile.
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward()
        total = total.to(loss.device) + loss.detach()

    for task in tasks:
        run(leaves, task, backward)
        # Casts of the leaves are kept for as long as autocast lasts: a second copy of the model.
        torch.clear_autocast_cache()
    learnt = [name for name, value in weights.items() if value.requires_grad]
    loss: Tensor = _Known.apply(total, [leaves[name].grad for name in learnt], *(weights[name] for name in learnt))
    return loss


class _Known(torch.autograd.Function):
    """A number whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *weights: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        # In place: a scaled copy of all of them would be one more model in memory.
        return None, None, *(None if one is None else one.mul_(outer) for one in gradients)
