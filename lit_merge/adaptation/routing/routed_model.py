"""RoutedModel: a bank whose weights are chosen input by input, tested and asked like any other module."""

from typing import Any

import torch
from torch import Tensor

from lit_merge.adaptation.routing.prototypes import Prototypes, check_routable
from lit_merge.adaptation.routing.router import Route, Router
from lit_merge.adaptation.scoring import ScoredModule, TaskMetrics
from lit_merge.bank.task_bank import TaskBank
from lit_merge.data.class_names import MIXED
from lit_merge.networks import Network
from lit_merge.report.scores import TaskScore


class RoutedModel(ScoredModule):
    """Every input runs with the weights of the task that it looks like; of `mixed` data, with that task's head too.

    Lightning's `test`, `validate` and `predict` take it. A batch is run task by task, not input by input.

    Args:
        bank: with a delta for every task.
        network: encoder and heads.
        prototypes: of this bank.
        route: `prototypes`, `entropy` or `layers`: see `Router`.
        rank_ratio: of the residuals that `layers` adds.

    Attributes:
        routing: task → the share of its inputs that were taken for its own, as `accuracy`, at the last pass; `entropy`
            is of the decisions. Of `layers`, by the vote of all layers.

    Raises:
        MergeError: a bank without deltas of every task, or whose weights are not the network's; a task without a head.
    """

    def __init__(
        self,
        bank: TaskBank,
        network: Network,
        prototypes: Prototypes,
        route: Route = "prototypes",
        rank_ratio: float = 0.08,
    ) -> None:
        super().__init__(network, bank.tasks)
        check_routable(bank)
        network.check(bank.shapes)
        network.heads.mix(bank.tasks)
        self.router = Router(bank, network, prototypes, route, rank_ratio)
        self.tasks = bank.tasks
        self.decisions = TaskMetrics(bank.tasks)
        self.routing: dict[str, TaskScore] = {}

    def logits(self, batch: dict[str, Any]) -> Tensor:
        return self._routed(batch)[0]

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """With `routed`, the task that every input was taken for; of `layers`, by the vote of all layers."""
        logits, scores = self._routed(batch)
        taken = [self.tasks[place] for place in scores.argmax(1).tolist()]
        return self.most_probable(batch, logits) | {"routed": taken}

    def _routed(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits (B, C), and how much speaks for each task (B, T)."""
        task = batch["task"]
        logits, scores = self.router(batch["images"], batch.get("head", task))
        if task != MIXED:
            right = torch.full((len(scores),), self.tasks.index(task), device=scores.device)
            self.decisions.update(task, scores, right)
        return logits, scores

    def finish_scores(self, split: str) -> None:
        super().finish_scores(split)
        self.routing = self.decisions.scores()

    def on_predict_epoch_end(self) -> None:
        self.routing = self.decisions.scores()
