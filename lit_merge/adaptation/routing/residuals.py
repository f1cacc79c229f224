"""ESM++: what the merge lacks of every expert, at a small rank, added layer by layer (arXiv 2606.19164)."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_merge.adaptation.routing.mean_tokens import MeanTokens, mask_of, run_watched
from lit_merge.adaptation.routing.prototypes import Prototypes
from lit_merge.bank.low_rank import LowRank, rank_of
from lit_merge.bank.task_bank import TaskBank
from lit_merge.networks import Network


def residuals(bank: TaskBank, names: Mapping[str, object], rank_ratio: float) -> dict[str, LowRank]:
    """Name → the leading directions of every task's expert minus the merge at the bank's own coefficients.

    Args:
        bank: with a delta for every task.
        names: of matrices.
        rank_ratio: ⌊rank_ratio·min(m, n)⌋ directions of each are kept.
    """
    found = {}
    tasks = [bank.only(task) for task in bank.tasks]
    for name in names:
        merged = bank.weight(name, torch.float32)
        apart = torch.stack([one.weight(name, torch.float32) - merged for one in tasks])
        found[name] = LowRank.from_dense(apart, rank_of(rank_ratio, *merged.shape))
    return found


class LayerRoutes(MeanTokens):
    """Adds to the outputs of every layer the residual of the task whose prototype is nearest to an input's mean token
    there; each input and each layer by itself.

    Args:
        weights: name → merged weight, each in memory of its own, where the network lies.
        prototypes: of the bank.
        parts: what `residuals` answered, there too.
        batch: B, number of inputs.
        mask: which tokens are no padding; None: all count.

    Attributes:
        choices: name → the position of the task that was chosen for every input, (B,).
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        prototypes: Prototypes,
        parts: Mapping[str, LowRank],
        batch: int,
        mask: Bool[Tensor, "B S"] | None,
    ) -> None:
        super().__init__(weights, prototypes.order, batch, mask)
        self.prototypes, self.parts = prototypes, parts
        self.choices: dict[str, Tensor] = {}

    def seen(self, name: str, first: int, inputs: Float[Tensor, "R n"], outputs: Tensor) -> Tensor:
        if name not in self.choices:
            known = self.prototypes.layers[name].to(inputs)
            self.choices[name] = torch.cdist(self.mean(name, inputs), known).argmin(1)
        tokens, height = self.order.by_input(name, inputs, self.batch), outputs.shape[-1]
        added = tokens.new_zeros(*tokens.shape[:2], height)
        part = self.parts[name]
        for task in self.choices[name].unique().tolist():
            chosen = self.choices[name] == task
            u, s, v = (factor[task].to(tokens) for factor in (part.U, part.S, part.V))
            added[chosen] = (tokens[chosen] @ v * s) @ u[first : first + height].mT
        return outputs + self.order.as_rows(name, added).view(outputs.shape)

    def votes(self, tasks: int) -> Float[Tensor, "B T"]:
        """How many layers chose each task."""
        every = torch.stack(list(self.choices.values()))
        return torch.nn.functional.one_hot(every, tasks).sum(0).float()


@torch.no_grad()
def routed_by_layer(
    network: Network,
    weights: Mapping[str, Tensor],
    prototypes: Prototypes,
    parts: Mapping[str, LowRank],
    inputs: Tensor,
) -> tuple[object, Float[Tensor, "B T"]]:
    """Features of inputs, as the network's heads take them, and the layers' votes for every task."""
    routes = LayerRoutes(weights, prototypes, parts, len(inputs), mask_of(network, inputs))
    features = run_watched(network, weights, inputs, routes)
    return features, routes.votes(len(prototypes.tasks))
