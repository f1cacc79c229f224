"""Sharpness-aware steps against the two gradients written out."""

import copy

import torch
from torch import nn

from lit_merge.adaptation.sharpness import SharpnessAware

RHO = 0.3


def curve(x: torch.Tensor) -> torch.Tensor:
    return (x**4).sum() + (x[0] * x[1]).sin()


def test_the_gradient_is_that_of_the_worst_nearby_point() -> None:
    torch.manual_seed(0)
    x = nn.Parameter(torch.randn(3))
    literal = nn.Parameter(x.detach().clone())
    aware = SharpnessAware(torch.optim.Adam([x], lr=0.05), RHO)
    adam = torch.optim.Adam([literal], lr=0.05)
    for _ in range(5):

        def closure() -> float:
            aware.zero_grad()
            loss = curve(x)
            loss.backward()
            return loss.item()

        said = aware.step(closure)
        assert said == curve(literal).item()
        (first,) = torch.autograd.grad(curve(literal), literal)
        worst = (literal + RHO * first / first.norm()).detach().requires_grad_()
        (literal.grad,) = torch.autograd.grad(curve(worst), worst)
        adam.step()
        torch.testing.assert_close(x, literal)


def test_groups_and_state_are_the_inner_ones_after_loading_too() -> None:
    x = nn.Parameter(torch.ones(2))
    aware = SharpnessAware(torch.optim.Adam([x], lr=0.05), RHO)
    aware.step(lambda: (aware.zero_grad(), curve(x).backward(), 0.0)[-1])
    state = copy.deepcopy(aware.state_dict())
    other = SharpnessAware(torch.optim.Adam([x], lr=0.5), RHO)
    other.load_state_dict(state)
    assert other.param_groups is other.inner.param_groups
    assert other.state is other.inner.state
    assert other.param_groups[0]["lr"] == 0.05
    assert other.state[x]["step"] == 1


def test_groups_at_rest_are_not_moved() -> None:
    x, resting = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [x], "lr": 0.1}, {"params": [resting], "lr": 0.0}]
    aware = SharpnessAware(torch.optim.SGD(groups), RHO)
    seen = []

    def closure() -> float:
        seen.append(resting.detach().clone())
        aware.zero_grad()
        (curve(x) + curve(resting)).backward()
        return 0.0

    aware.step(closure)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(resting, torch.ones(2))
    assert not torch.equal(x, torch.ones(2))
