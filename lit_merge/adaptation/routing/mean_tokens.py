"""The mean token that flows into every layer, of every input of a batch by itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_merge.errors import MergeError
from lit_merge.networks import Network
from lit_merge.networks.products import WatchedProducts, visible_products

# How far apart two numbers are, of the largest, that are equal but for rounding.
ROUNDING = 1e-4


@dataclass(frozen=True)
class RowOrder:
    """How the rows of a layer's inputs lie: those of attention may come token after token, others input after input.

    Attributes:
        tokens_first: name of every layer that can be distinguished → whether token 0 of all inputs comes first.
    """

    tokens_first: Mapping[str, bool]

    def by_input(self, name: str, rows: Float[Tensor, "R n"], batch: int) -> Float[Tensor, "B S n"]:
        """The rows of every input by themselves."""
        if self.tokens_first[name]:
            return rows.reshape(-1, batch, rows.shape[-1]).transpose(0, 1)
        return rows.reshape(batch, -1, rows.shape[-1])

    def as_rows(self, name: str, values: Float[Tensor, "B S m"]) -> Float[Tensor, "R m"]:
        """Back in the order of the layer."""
        return (values.transpose(0, 1) if self.tokens_first[name] else values).reshape(-1, values.shape[-1])

    @classmethod
    @torch.no_grad()
    def find(cls, network: Network, weights: Mapping[str, Tensor], names: Iterable[str], inputs: Tensor) -> "RowOrder":
        """Finds out by changing one of two inputs: where rows change are those of that input.

        Args:
            network: that runs.
            weights: name → weight, each in memory of its own, where the network lies.
            names: of layers; those that are not used as y = x·Wᵀ, or on no rows of an input's own, are left out.
            inputs: (B, …), of which at least two differ.

        Raises:
            MergeError: inputs that are all equal.
        """
        changed, kept = _different(network, inputs)
        watch = _Rows({name: weights[name] for name in names})
        seen = []
        for first in (changed, kept):
            watch.rows = {}
            run_watched(network, weights, torch.stack([first, kept]), watch)
            seen.append(watch.rows)
        found = {}
        for name, rows in seen[0].items():
            others = seen[1].get(name)
            if others is None or rows.shape != others.shape or len(rows) % 2:
                continue
            equal = (rows - others).abs().amax(-1) <= ROUNDING * rows.abs().max()
            half = len(rows) // 2
            if equal[half:].all():
                found[name] = False
            elif equal[1::2].all():
                found[name] = True
        return cls(found)


class MeanTokens(WatchedProducts):
    """Notes the mean token of every input at every layer; padding does not count.

    Args:
        weights: name → weight, each in memory of its own.
        order: of the layers that are looked at.
        batch: B, number of inputs.
        mask: which tokens are no padding; None: all count.

    Attributes:
        found: name → mean tokens (B, n).
    """

    def __init__(
        self, weights: Mapping[str, Tensor], order: RowOrder, batch: int, mask: Bool[Tensor, "B S"] | None = None
    ) -> None:
        super().__init__({name: weights[name] for name in order.tokens_first})
        self.order, self.batch, self.mask = order, batch, mask
        self.found: dict[str, Tensor] = {}

    def seen(self, name: str, first: int, inputs: Float[Tensor, "R n"], outputs: Tensor) -> Tensor:
        if name not in self.found:
            self.found[name] = self.mean(name, inputs)
        return outputs

    def mean(self, name: str, rows: Float[Tensor, "R n"]) -> Float[Tensor, "B n"]:
        """The mean token of every input."""
        tokens = self.order.by_input(name, rows, self.batch)
        if self.mask is None or self.mask.shape[1] != tokens.shape[1]:
            return tokens.mean(1)
        counted = self.mask[..., None].to(tokens.dtype)
        return (tokens * counted).sum(1) / counted.sum(1).clamp_min(1)


@torch.no_grad()
def mean_tokens(
    network: Network, weights: Mapping[str, Tensor], order: RowOrder, inputs: Tensor
) -> dict[str, Float[Tensor, "B n"]]:
    """Name → mean token of every input, at the layers whose order is known."""
    inputs = inputs.to(network.device)
    watch = MeanTokens(weights, order, len(inputs), mask_of(network, inputs))
    run_watched(network, weights, inputs, watch)
    return watch.found


def mask_of(network: Network, inputs: Tensor) -> Bool[Tensor, "B S"] | None:
    """Which tokens of inputs are no padding; None: all are none."""
    mask = network.token_mask(inputs)
    return None if mask is None else mask.to(network.device)


def placed(weights: Mapping[str, Tensor], network: Network, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights where the network computes, in this precision, each in memory of its own."""
    device = network.device
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype, copy=True).contiguous()
        for name, value in weights.items()
    }


def run_watched(network: Network, weights: Mapping[str, Tensor], inputs: Tensor, watch: WatchedProducts) -> Any:
    """Features of inputs, as the network's heads take them, with every product of the encoder seen."""

    def encode() -> Any:
        with watch:
            return network.encode(inputs.to(network.device))

    with visible_products():
        return network.holding(weights, encode)


def _different(network: Network, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Two inputs that differ, the second of which has as many tokens as any."""
    mask = network.token_mask(inputs)
    longest = 0 if mask is None else int(mask.sum(1).argmax())
    kept = inputs[longest]
    for one in inputs:
        if not torch.equal(one, kept):
            return one, kept
    raise MergeError("routing: the inputs to make prototypes of are all equal: give more of them")


class _Rows(WatchedProducts):
    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        self.rows: dict[str, Tensor] = {}

    def seen(self, name: str, first: int, inputs: Float[Tensor, "R n"], outputs: Tensor) -> Tensor:
        self.rows.setdefault(name, inputs)
        return outputs
