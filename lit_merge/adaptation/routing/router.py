"""Router: for every input of a batch, which task's weights it is run with, and which head."""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_merge.adaptation.routing.mean_tokens import mean_tokens, placed
from lit_merge.adaptation.routing.prototypes import Prototypes
from lit_merge.adaptation.routing.residuals import residuals, routed_by_layer
from lit_merge.bank.task_bank import TaskBank
from lit_merge.data.class_names import MIXED
from lit_merge.errors import check_choice
from lit_merge.networks import Network, compute_dtype
from lit_merge.objectives import entropy

Route = Literal["prototypes", "entropy", "layers"]
# What an expert's entropy, as a share of log C, counts for next to the logarithm of a density.
UNSURE = 10.0
# Whose weights are held: most batches need one or two tasks'.
HELD = 2


class Router:
    """Runs inputs of unknown tasks, those of one task together.

    Args:
        bank: with a delta for every task.
        network: encoder and heads.
        prototypes: of this bank.
        route: how the task of an input is found. `prototypes`: the task under which the mean tokens of all layers are
            most probable. `entropy`: of the two most probable, also the one whose expert is surer of its prediction.
            `layers`: every layer decides for itself (ESM++), see `LayerRoutes`.
        rank_ratio: of the residuals that `layers` adds.

    Raises:
        MergeError: a share outside (0, 1].
    """

    def __init__(
        self, bank: TaskBank, network: Network, prototypes: Prototypes, route: Route, rank_ratio: float = 0.08
    ) -> None:
        check_choice("route", route, Route)
        self.bank, self.network, self.route = bank, network, route
        self.prototypes, self.dtype = prototypes, compute_dtype(bank.dtypes.values())
        self.residuals = residuals(bank, prototypes.layers, rank_ratio) if route == "layers" else {}
        self._held: dict[str, dict[str, Tensor]] = {}
        self._whole: dict[str, Tensor] = {}
        self._device = network.device

    @property
    def nbytes(self) -> int:
        """Bytes of what routing takes besides the bank."""
        return self.prototypes.nbytes + sum(part.nbytes for part in self.residuals.values())

    @torch.no_grad()
    def __call__(self, inputs: Tensor, head: str) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B T"]]:
        """Logits of every input, and how much speaks for each task.

        Args:
            inputs: (B, …), of any tasks.
            head: of all inputs; `mixed` where it is unknown too: then the classes of the task that is found are the
                possible ones among those of all tasks.
        """
        inputs = inputs.to(self.network.device)
        with torch.autocast(inputs.device.type, enabled=False):
            if self.route == "layers":
                return self._by_layer(inputs, head)
            scores = self.log_densities(inputs)
            nearest = scores.topk(min(2 if self.route == "entropy" else 1, scores.shape[1]), dim=1).indices
            return self._among(inputs, head, scores, nearest)

    def log_densities(self, inputs: Tensor) -> Float[Tensor, "B T"]:
        """Of every input, the logarithm of the density of its features under each task, but for a constant."""
        found = mean_tokens(self.network, self._weights(None), self.prototypes.order, inputs)
        features = torch.cat([found[name] for name in self.prototypes.layers], 1).float()
        return self.prototypes.discriminants.to(features.device).log_densities(features)

    def _among(
        self, inputs: Tensor, head: str, scores: Float[Tensor, "B T"], nearest: Int[Tensor, "B k"]
    ) -> tuple[Tensor, Tensor]:
        """Runs the experts of the nearest tasks, each once over all of its inputs, and takes the best of each input."""
        found = torch.full_like(scores, torch.finfo(scores.dtype).min / 4)
        kept: Tensor | None = None
        for place in nearest.unique().tolist():
            task = self.bank.tasks[place]
            chosen = (nearest == place).any(1).nonzero()[:, 0]
            own = task if head == MIXED else head
            logits = self.network(self._weights(task), {own: inputs[chosen]})[own]
            value = scores[chosen, place]
            if nearest.shape[1] > 1:
                value = value - UNSURE * entropy(logits).to(value) / max(math.log(logits.shape[-1]), 1e-6)
            if head == MIXED:
                logits = self._among_all(logits, task)
            kept = logits.new_zeros(len(inputs), logits.shape[-1]) if kept is None else kept
            better = value > found[chosen].amax(1)
            kept[chosen[better]] = logits[better]
            found[chosen, place] = value
        assert kept is not None
        return kept, found if nearest.shape[1] > 1 else scores

    def _among_all(self, logits: Float[Tensor, "B C"], task: str) -> Float[Tensor, "B A"]:
        """The logits of a task's head among those of all tasks, which are impossible."""
        heads = self.network.heads
        whole = logits.new_full((len(logits), heads.classes(MIXED)), torch.finfo(logits.dtype).min / 4)
        first = heads.first_row(MIXED, task)
        whole[:, first : first + logits.shape[1]] = logits
        return whole

    def _by_layer(self, inputs: Tensor, head: str) -> tuple[Tensor, Tensor]:
        merged = self._weights(None)
        found, votes = routed_by_layer(self.network, merged, self.prototypes, self.residuals, inputs)
        features: Any = found
        if head != MIXED:
            return self.network.heads(features, head), votes
        every = {task: self._among_all(self.network.heads(features, task), task) for task in self.bank.tasks}
        chosen = votes.argmax(1)
        return torch.stack(list(every.values()))[chosen, torch.arange(len(chosen), device=chosen.device)], votes

    def _weights(self, task: str | None) -> dict[str, Tensor]:
        """Of a task's expert, or for None what all inputs run with first, where the network lies: the origin, or with
        `layers` the merge."""
        device = self.network.device
        if device != self._device:
            self._device, self._held, self._whole = device, {}, {}
        if task is None:
            if not self._whole:
                merged = self.bank.merge(dtype=self.dtype, naming="canonical") if self.route == "layers" else None
                self._whole = placed(merged or self.bank.origin, self.network, self.dtype)
            return self._whole
        if task not in self._held:
            while len(self._held) >= HELD:
                del self._held[next(iter(self._held))]
            only = self.bank.only(task)
            only = replace(only, coefficients=only.coefficients.to(device))
            self._held[task] = only.merge(dtype=self.dtype, naming="canonical")
        return self._held[task]
