"""Probe: a fixed set of unlabelled inputs of every task, and what any merged weights say about it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_merge.data import TaskData
from lit_merge.errors import MergeError
from lit_merge.networks import Network
from lit_merge.objectives import entropy

# Inputs per forward, of all tasks together: small enough for a laptop with a large encoder.
BATCH = 256
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Reading:
    """What one merge says about the probe's inputs, per task: no label is involved.

    Attributes:
        entropy: mean entropy of the predictions, in nats.
        agreement: share of inputs on which the merge predicts what the task's own expert does; empty without experts.
        balance: entropy of the mean prediction over log C: near 0 where one class takes everything.
        accuracy: share of inputs predicted as their labels say; empty for a probe without labels.
    """

    entropy: dict[str, float]
    agreement: dict[str, float]
    balance: dict[str, float]
    accuracy: dict[str, float] = field(default_factory=dict)

    @property
    def mean_accuracy(self) -> float | None:
        return sum(self.accuracy.values()) / len(self.accuracy) if self.accuracy else None

    @property
    def mean_entropy(self) -> float:
        return sum(self.entropy.values()) / len(self.entropy)

    @property
    def mean_agreement(self) -> float | None:
        return sum(self.agreement.values()) / len(self.agreement) if self.agreement else None


class Probe:
    """A fixed set of unlabelled inputs of every task, and how any weights read on it.

    Args:
        network: encoder and heads; inputs are moved to where it lies.
        inputs: task → inputs (N, …).
        labels: task → classes (N,), where accuracies are wanted.
    """

    def __init__(
        self, network: Network, inputs: Mapping[str, Tensor], labels: Mapping[str, Tensor] | None = None
    ) -> None:
        self.network = network
        self.inputs = dict(inputs)
        self.labels = dict(labels or {})
        self.predictions: dict[str, Int[Tensor, " N"]] = {}
        self.expert_entropy: dict[str, float] = {}
        self.classes: dict[str, Int[Tensor, " N"]] = {}
        """What was predicted at the last reading, on the CPU."""

    @classmethod
    def draw(cls, network: Network, data: TaskData, images: int = 64) -> "Probe":
        """Draws inputs from the unlabelled ones of every task, by the data's seed; all of a task that has fewer.

        Raises:
            MergeError: `images` below 1; data of other classes than those of the heads.
        """
        if images < 1:
            raise MergeError(f"images={images}: expected at least 1 of every task")
        data.suit(network)
        data.label_rows("adaptation", network.heads.rows_of)
        inputs = {}
        for task, source in data.unlabelled().items():
            generator = torch.Generator().manual_seed(data.seed)
            chosen = torch.randperm(len(source), generator=generator)[:images]
            inputs[task] = source.read(chosen.sort().values.tolist())
        return cls(network, inputs)

    @classmethod
    def labelled(cls, network: Network, data: TaskData, split: str) -> "Probe":
        """All labelled inputs of `validation` or `test`.

        Raises:
            MergeError: other classes than those of the heads.
        """
        inputs, labels = {}, {}
        data.suit(network)
        data.check_classes(split, network.heads.classes)
        rows = data.label_rows(split, network.heads.rows_of)
        for task, (source, targets) in data.labelled(split).items():
            assert targets is not None
            inputs[task] = source.read(range(len(source)))
            labels[task] = network.rows({"task": task, "labels": targets.long()}, rows)
        return cls(network, inputs, labels)

    def ask_experts(self, weights: Callable[[str], Weights]) -> None:
        """Notes what every task's own expert predicts, for `Reading.agreement`.

        Args:
            weights: task → its expert's weights; called once per task.
        """
        for task in self.inputs:
            logits = torch.cat([logits for _, logits in self._forward(weights(task), [task])])
            self.predictions[task] = logits.argmax(-1)
            self.expert_entropy[task] = entropy(logits).mean().item()

    def read(self, weights: Weights) -> Reading:
        """Runs the network once over all inputs."""
        found: dict[str, list[Tensor]] = {task: [] for task in self.inputs}
        for task, logits in self._forward(weights, list(self.inputs)):
            found[task].append(logits)
        whole = {task: torch.cat(parts) for task, parts in found.items()}
        self.classes = {task: value.argmax(-1).cpu() for task, value in whole.items()}
        return Reading(
            entropy={task: entropy(value).mean().item() for task, value in whole.items()},
            agreement={task: share(whole[task], expected) for task, expected in self.predictions.items()},
            balance={task: balance(value) for task, value in whole.items()},
            accuracy={task: share(whole[task], labels) for task, labels in self.labels.items()},
        )

    @torch.no_grad()
    def _forward(self, weights: Weights, tasks: list[str]) -> Iterator[tuple[str, Tensor]]:
        moved = {name: value.to(self.network.device) for name, value in weights.items()}
        for task in tasks:
            for batch in self.inputs[task].split(BATCH):
                yield task, self.network(moved, {task: batch.to(self.network.device)})[task]


def share(logits: Float[Tensor, "B C"], classes: Int[Tensor, " B"]) -> float:
    """Share of rows whose largest logit is that of the given class."""
    return (logits.argmax(-1) == classes.to(logits.device)).double().mean().item()


def balance(logits: Float[Tensor, "B C"]) -> float:
    """Entropy of the mean prediction over log C, in [0, 1]: 1 where all classes are predicted as often."""
    mean = logits.softmax(-1).mean(0)
    most = torch.tensor(float(len(mean))).log().item()
    return (-(mean * mean.clamp_min(1e-30).log()).sum().item()) / most if most else 1.0
