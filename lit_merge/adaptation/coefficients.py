"""The learnable coefficients λ of a merge, at any granularity."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_merge.bank.low_rank import LowRank
from lit_merge.bank.on_demand import without_values
from lit_merge.bank.task_bank import TaskBank
from lit_merge.errors import MergeError
from lit_merge.experts.matrices import block_of

Granularity = Literal["tied", "task", "block", "layer", "direction"]


class Coefficients(nn.Module):
    """λ[t, c] = anchor[t, c] + unit · offset[group of (t, c)], where a column c is a weight, or one of its directions.

    What is learnt is one offset per group; which entries share one is the granularity: `tied` (all of them), `task`,
    `block` (a task's weights in one numbered block; those outside blocks together), `layer` (a task's weight) or
    `direction` (a singular direction of a task's weight). `offset` always has an entry per λ, of which the first few
    are in use: so the granularity can change in mid-fit while optimiser, checkpoint and distributed wrapper keep the
    parameter that they know. An offset rather than a factor: a λ that starts at 0 can be learnt, too.

    Args:
        start: (T or 1, L), λ before any step.
        layers: names of the L weights.
        granularity: the first one.
        bounds: (lower, upper) for λ in the forward; the gradient is zero outside them, as in AdaMerging.
            Off by default.
        directions: weight → (T or 1, r), λ of every direction before any step, for the weights that have directions of
            their own. None of them by default.

    Raises:
        MergeError: bounds in the wrong order; the granularity `direction` without directions.
    """

    offset: Tensor
    anchor: Tensor
    group: Tensor
    unit: Tensor

    def __init__(
        self,
        start: Float[Tensor, "rows L"],
        layers: Sequence[str],
        granularity: Granularity = "layer",
        bounds: tuple[float, float] | None = None,
        directions: Mapping[str, Float[Tensor, "rows r"]] | None = None,
    ) -> None:
        super().__init__()
        if bounds is not None and not bounds[0] < bounds[1]:
            raise MergeError(f"bounds={list(bounds)}: the lower one must be below the upper one")
        self.layers = tuple(layers)
        self.bounds = bounds
        self.granularity = granularity
        dtype = torch.promote_types(start.dtype, torch.float32)
        directions = directions or {}
        parts = [directions.get(name, start[:, i, None]) for i, name in enumerate(self.layers)]
        self.directed = tuple(name for name in self.layers if name in directions)
        """Weights whose directions have coefficients of their own."""
        self.widths = [part.shape[1] for part in parts]
        columns = torch.cat([part.to(dtype) for part in parts], dim=1) if parts else start.to(dtype)
        self.offset = nn.Parameter(torch.zeros(columns.numel(), dtype=dtype))
        self.register_buffer("anchor", columns.detach().clone())
        self.register_buffer("group", self._groups(granularity))
        self.register_buffer("unit", torch.ones((), dtype=dtype))

    def forward(self) -> Float[Tensor, "rows L"]:
        """λ[task, weight], differentiable in `offset`; the mean over directions where they have their own."""
        return self.by_weight(self.values())

    def values(self) -> Float[Tensor, "rows columns"]:
        """Every λ, differentiable in `offset`."""
        values = self.anchor + self.unit * self.offset[self.group]
        if self.bounds is None:
            return values
        # clamp's own gradient at a bound differs between versions of torch: there it must pass, or λ would be stuck.
        clamped = values.detach().clamp(*self.bounds)
        return torch.where(clamped == values, values, clamped)

    def by_weight(self, values: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows L"]:
        """Of all λ, one for every weight: the mean over its directions."""
        if not self.directed:
            return values
        return torch.stack([part.mean(1) for part in values.split(self.widths, dim=1)], dim=1)

    def by_direction(self, values: Float[Tensor, "rows columns"]) -> dict[str, Float[Tensor, "rows r"]]:
        """Of all λ, those of directions: weight → (T or 1, r)."""
        parts = dict(zip(self.layers, values.split(self.widths, dim=1), strict=True)) if self.directed else {}
        return {name: parts[name] for name in self.directed}

    @torch.no_grad()
    def set_granularity(self, granularity: Granularity, relative: bool = False) -> None:
        """Goes on from the λ reached so far with other groups. The optimiser's state of `offset` is stale after it.

        Args:
            granularity: of the offsets from now on.
            relative: count them in units of the mean |λ| reached so far, rather than in units of 1.
        """
        self.anchor.copy_(self.anchor + self.unit * self.offset[self.group])
        self.offset.zero_()
        self.group.copy_(self._groups(granularity))
        mean = self.anchor.abs().mean()
        self.unit.copy_(mean if relative and mean > 0 else torch.ones_like(mean))
        self.granularity = granularity

    def _groups(self, granularity: Granularity) -> Int[Tensor, "rows columns"]:
        rows, every = self.anchor.shape
        layers = len(self.layers)
        # The weight that a column belongs to.
        owner = torch.arange(layers).repeat_interleave(torch.tensor(self.widths, dtype=torch.long))
        if granularity == "tied":
            columns, per_row = torch.zeros(every, dtype=torch.long), 0
        elif granularity == "task":
            columns, per_row = torch.zeros(every, dtype=torch.long), 1
        elif granularity == "layer":
            columns, per_row = owner, layers
        elif granularity == "block":
            found = [block_of(name) for name in self.layers]
            names = sorted(set(found))
            columns, per_row = torch.tensor([names.index(name) for name in found], dtype=torch.long)[owner], len(names)
        elif granularity == "direction":
            if not self.directed:
                raise MergeError("granularity=direction: the bank has no low-rank deltas, and so no directions")
            columns, per_row = torch.arange(every), every
        else:
            raise MergeError(f"granularity={granularity!r}: expected tied, task, block, layer or direction")
        return torch.arange(rows)[:, None] * per_row + columns


def learnable_coefficients(
    bank: TaskBank, granularities: Sequence[Granularity], bounds: tuple[float, float] | None
) -> Coefficients:
    """The coefficients that a fit learns whose stages have these granularities, from those of the bank.

    Raises:
        MergeError: directions are asked for, and the bank has none.
    """
    directed = "direction" in granularities
    directions = dict(bank.directions)
    if directed or directions:
        for i, (name, delta) in enumerate(without_values(bank.deltas).items()):
            if isinstance(delta, LowRank):
                directions.setdefault(name, bank.coefficients[:, i, None].expand(-1, delta.rank))
    if directed and not directions:
        method = bank.method.get("class_path", "this bank")
        raise MergeError(
            f"granularity=direction: {method} has no low-rank deltas, and so no directions: set its rank_ratio where "
            "it has one, or take a method whose deltas are decomposed, as CART or TSVM"
        )
    return Coefficients(bank.coefficients, bank.layers, granularities[0], bounds, directions)


def by_row(tasks: Sequence[str], coefficients: Float[Tensor, "rows L"]) -> dict[str, Float[Tensor, " L"]]:
    """task → its coefficients; `all` where one delta is shared."""
    return dict(zip(tasks if len(tasks) == len(coefficients) else ("all",), coefficients, strict=True))
