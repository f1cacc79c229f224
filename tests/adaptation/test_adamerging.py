"""AdaMerging (arXiv 2310.02575), AdaMerging++ and AdaRank, step by step, against a literal dense loop."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lit_merge import TIES, AdaRank, LowRank, MergedModel, MergeMethod, Stage, TaskArithmetic, build_bank

STEPS, LR = 6, 0.02
State = dict[str, Tensor]


def task_vectors(method: MergeMethod, tiny: Any) -> tuple[State, dict[str, Tensor]]:
    """θ₀, and the vectors (T, …) of every weight that some expert moved, dense."""
    bank = build_bank(tiny.experts, tiny.base, method=method)
    return bank.origin, {n: d.to_dense() if isinstance(d, LowRank) else d for n, d in bank.deltas.items()}


def batches(tiny: Any) -> list[dict[str, Tensor]]:
    found: list[dict[str, Tensor]] = []
    loader = tiny.data().train_dataloader()
    while len(found) < STEPS:
        found += list(loader)
    return found[:STEPS]


def entropy_of(network: Any, weights: State, batch: dict[str, Tensor]) -> Tensor:
    """Σ_t of the batch's mean entropy, from probabilities as the authors' code has it."""
    loss = torch.zeros(())
    for task, images in batch.items():
        features = F.normalize(functional_call(network.encoder, weights, (network.prepare(images),)), dim=-1)
        rows = network.heads.rows[network.heads.tasks.index(task)]
        p = (network.heads.logit_scale * features @ rows.T).softmax(1)
        loss = loss - (p * p.log()).sum(1).mean()
    return loss


def adamerging(method: MergeMethod, granularity: str, tiny: Any) -> Tensor:
    """λ (T, L) after the steps: clamped to [0, 1] in the forward only."""
    base, vectors = task_vectors(method, tiny)
    network = tiny.encoder()
    shape = (3, len(vectors)) if granularity == "layer" else (3, 1)
    lam = torch.full(shape, 0.3, requires_grad=True)
    adam = torch.optim.Adam([lam], lr=LR)
    for batch in batches(tiny):
        columns = lam.clamp(0, 1).expand(3, len(vectors))
        merged = dict(base)
        for i, (name, tau) in enumerate(vectors.items()):
            merged[name] = base[name] + torch.einsum("t,t...->...", columns[:, i], tau)
        adam.zero_grad()
        entropy_of(network, merged, batch).backward()
        adam.step()
    return lam.detach().expand(3, len(vectors))


@pytest.mark.parametrize(
    ("method", "granularity"),
    [
        (TaskArithmetic(0.3), "task"),
        (TaskArithmetic(0.3), "layer"),
        (TIES(merge="sum", scaling=0.3), "layer"),
    ],
    ids=["task-wise", "layer-wise", "plus plus"],
)
def test_adamerging(method: MergeMethod, granularity: Any, tiny: Any, make_model: Any, make_trainer: Any) -> None:
    model: MergedModel = make_model(method, stages=[Stage(granularity, STEPS, LR)], bounds=(0.0, 1.0))
    make_trainer(max_steps=STEPS).fit(model, datamodule=tiny.data())
    reached = model.coefficients().detach()
    torch.testing.assert_close(reached, adamerging(method, granularity, tiny), rtol=1e-3, atol=1e-4)
    assert (reached - 0.3).abs().max() > 0.02


def adarank(tiny: Any, kept: int) -> tuple[Tensor, dict[str, Tensor]]:
    """λ (T, L) and mask logits by weight, with the straight-through estimator written out in autograd."""
    bank = build_bank(tiny.experts, tiny.base, method=TaskArithmetic(0.3, rank_ratio=1.0))
    network = tiny.encoder()
    lam = torch.full((3, len(bank.layers)), 0.3, requires_grad=True)
    logits = {}
    for name in bank.ranks:
        z = torch.full(bank.deltas[name].S.shape, -0.1)  # type: ignore[union-attr]
        z[:, :kept] = 0.1
        logits[name] = z.requires_grad_()
    adam = torch.optim.Adam([lam, *logits.values()], lr=LR)
    for batch in batches(tiny):
        merged = dict(bank.origin)
        for i, (name, delta) in enumerate(bank.deltas.items()):
            if isinstance(delta, LowRank):
                soft = torch.sigmoid(logits[name] / 10)
                mask = (logits[name] > 0).float() - soft.detach() + soft
                dense = (delta.U * (delta.S * mask)[:, None]) @ delta.V.mT
            else:
                dense = delta
            merged[name] = merged[name] + torch.einsum("t,t...->...", lam[:, i], dense)
        adam.zero_grad()
        entropy_of(network, merged, batch).backward()
        adam.step()
    return lam.detach(), {name: z.detach() for name, z in logits.items()}


def test_adarank(tiny: Any, make_model: Callable[..., MergedModel], make_trainer: Any) -> None:
    # Every matrix of the tiny tower has 32 directions: an eighth of them are 4.
    model = make_model(
        TaskArithmetic(0.3, rank_ratio=1.0), stages=[Stage("layer", STEPS, LR)], ranks=AdaRank(0.125, lr=LR)
    )
    make_trainer(max_steps=STEPS).fit(model, datamodule=tiny.data())
    lam, logits = adarank(tiny, 4)
    torch.testing.assert_close(model.coefficients().detach(), lam, rtol=1e-3, atol=2e-4)
    ours, theirs = (torch.cat([z.detach().flatten() for z in one.values()]) for one in (model.masks(), logits))  # type: ignore[misc]
    # Adam divides by a gradient's size: where that is rounding only, so is the step.
    assert ((ours - theirs).abs() < 1e-3).float().mean() > 0.98
    assert ((ours > 0) == (theirs > 0)).float().mean() > 0.99
    assert (theirs > 0).sum() != 4 * len(logits) * 3
