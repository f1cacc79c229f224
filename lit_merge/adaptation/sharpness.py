"""Sharpness-aware stepping around any optimiser."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class SharpnessAware(Optimizer):
    """Steps by the gradient at the worst nearby point, p + rho·g/‖g‖ (SAM, arXiv 2010.01412): two backwards a step.

    Args:
        inner: makes the step; its groups and its state are this optimiser's.
        rho: how far the worst point is looked for, in units of the parameters.
    """

    def __init__(self, inner: Optimizer, rho: float) -> None:
        super().__init__(inner.param_groups, {})
        self.inner, self.rho = inner, rho
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state, self.defaults = self.inner.param_groups, self.inner.state, self.inner.defaults

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is not None
        again = torch.enable_grad()(closure)
        loss = again()
        learnt = [p for group in self.param_groups if group["lr"] for p in group["params"] if p.grad is not None]
        before = [p.clone() for p in learnt]
        norm = torch.stack([p.grad.norm() for p in learnt]).norm().clamp_min(1e-12)
        for p in learnt:
            p.add_(p.grad, alpha=self.rho / norm.item())
        again()
        for p, old in zip(learnt, before, strict=True):
            p.copy_(old)
        self.inner.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        self._share()
