"""The learnable coefficients λ of a merge, at any granularity."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_merge.errors import MergeError
from lit_merge.experts.matrices import block_of

Granularity = Literal["tied", "task", "block", "layer"]


class Coefficients(nn.Module):
    """λ[t, l] = anchor[t, l] + offset[group of (t, l)].

    What is learnt is one offset per group; which entries share one is the granularity: `tied` (all of them), `task`,
    `block` (a task's weights in one numbered block; those outside blocks together) or `layer` (every entry its own).
    `offset` always has T·L entries, of which the first few are in use: so the granularity can change in mid-fit while
    optimiser, checkpoint and distributed wrapper keep the parameter that they know. An offset rather than a factor,
    so that Adam's steps mean the same whatever λ starts at.

    Args:
        start: (T or 1, L), λ before any step.
        layers: names of the L weights.
        granularity: the first one.
        bounds: (lower, upper) for λ in the forward; the gradient is zero outside them, as in AdaMerging.
            Off by default.
    """

    offset: Tensor
    anchor: Tensor
    group: Tensor

    def __init__(
        self,
        start: Float[Tensor, "rows L"],
        layers: Sequence[str],
        granularity: Granularity = "layer",
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if bounds is not None and not bounds[0] < bounds[1]:
            raise MergeError(f"bounds={list(bounds)}: the lower one must be below the upper one")
        self.layers = tuple(layers)
        self.bounds = bounds
        self.granularity = granularity
        dtype = torch.promote_types(start.dtype, torch.float32)
        self.offset = nn.Parameter(torch.zeros(start.numel(), dtype=dtype))
        self.register_buffer("anchor", start.detach().clone().to(dtype))
        self.register_buffer("group", self._groups(granularity))

    def forward(self) -> Float[Tensor, "rows L"]:
        """λ, differentiable in `offset`."""
        values = self.anchor + self.offset[self.group]
        if self.bounds is None:
            return values
        # clamp's own gradient at a bound differs between versions of torch: there it must pass, or λ would be stuck.
        clamped = values.detach().clamp(*self.bounds)
        return torch.where(clamped == values, values, clamped)

    @torch.no_grad()
    def set_granularity(self, granularity: Granularity) -> None:
        """Goes on from the λ reached so far with other groups. The optimiser's state of `offset` is stale after it."""
        self.anchor.copy_(self.anchor + self.offset[self.group])
        self.offset.zero_()
        self.group.copy_(self._groups(granularity))
        self.granularity = granularity

    def _groups(self, granularity: Granularity) -> Int[Tensor, "rows L"]:
        rows, layers = self.anchor.shape
        if granularity == "tied":
            columns, per_row = torch.zeros(layers, dtype=torch.long), 0
        elif granularity == "task":
            columns, per_row = torch.zeros(layers, dtype=torch.long), 1
        elif granularity == "layer":
            columns, per_row = torch.arange(layers), layers
        elif granularity == "block":
            found = [block_of(name) for name in self.layers]
            names = sorted(set(found))
            columns, per_row = torch.tensor([names.index(name) for name in found], dtype=torch.long), len(names)
        else:
            raise MergeError(f"granularity={granularity!r}: expected tied, task, block or layer")
        return torch.arange(rows)[:, None] * per_row + columns


def by_row(tasks: Sequence[str], coefficients: Float[Tensor, "rows L"]) -> dict[str, Float[Tensor, " L"]]:
    """task → its coefficients; `all` where one delta is shared."""
    return dict(zip(tasks if len(tasks) == len(coefficients) else ("all",), coefficients, strict=True))
