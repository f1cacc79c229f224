"""What adaptation minimises on unlabelled data: pure functions, and thin classes that configurations name."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lit_merge.errors import Finite, MergeError


def entropy(logits: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """−Σ_c p_c·log p_c of softmax(logits), in nats, from log-softmax: exact for confident predictions too.

    >>> import torch
    >>> entropy(torch.zeros(1, 4)).exp().round().item()
    4.0
    """
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def mean_prediction_entropy(logits: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """Entropy of the mean prediction, in nats: log C where all classes are predicted as often, 0 where one is."""
    log_mean = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return -(log_mean.exp() * log_mean).sum()


def confident_entropy(logits: Float[Tensor, "B C"], threshold: float) -> Float[Tensor, ""]:
    """Mean entropy of the predictions below threshold·log C, each weighted by exp(threshold·log C − entropy), the
    weight detached; 0 where there is none."""
    each, limit = entropy(logits), threshold * math.log(logits.shape[-1])
    weights = (limit - each.detach()).exp() * (each.detach() < limit)
    return (weights * each).mean()


def divergence(
    logits: Float[Tensor, "B C"], expert: Float[Tensor, "B C"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Mean KL divergence of the predictions from the expert's, in nats, of softmax(logits / temperature).

    Times temperature², so that gradients are of one size whatever the temperature (arXiv 1503.02531).
    """
    ours, theirs = ((z / temperature).log_softmax(-1) for z in (logits, expert))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def feature_distance(features: Float[Tensor, "B d"], expert: Float[Tensor, "B d"]) -> Float[Tensor, ""]:
    """Mean of 1 − cos(features, the expert's)."""
    return (1 - F.cosine_similarity(features, expert, dim=-1)).mean()


class Objective(Finite, ABC):
    """A loss of one task's logits; the loss of a step is the mean over tasks."""

    asks_experts: ClassVar[bool] = False
    """Whether the task's expert is run on the same inputs, for `expert` in the call."""

    @property
    def of_features(self) -> bool:
        """Whether it is called with what the encoder answers, before the head, instead of logits."""
        return False

    @abstractmethod
    def __call__(self, logits: Float[Tensor, "B C"], expert: Float[Tensor, "B C"] | None = None) -> Float[Tensor, ""]:
        """The loss of one batch of one task.

        Args:
            logits: of the merge; with `of_features` features (B, d).
            expert: likewise of the task's expert, where `asks_experts`.
        """


@dataclass(frozen=True)
class Entropy(Objective):
    """Mean entropy of the predictions (AdaMerging, arXiv 2310.02575).

    Use it by default: it needs nothing but the inputs. A fit that goes on for too long may become sure of wrong
    classes, which the guard watches for.

    Args:
        per_log_classes: divide by log C, so that tasks with many classes weigh no more than others.
    """

    per_log_classes: bool = False

    def __call__(self, logits: Float[Tensor, "B C"], expert: Float[Tensor, "B C"] | None = None) -> Float[Tensor, ""]:
        mean = entropy(logits).mean()
        return mean / math.log(logits.shape[-1]) if self.per_log_classes else mean


@dataclass(frozen=True)
class InformationMaximisation(Objective):
    """Mean entropy of the predictions minus the entropy of their mean: sure of each, and all classes in use (SHOT,
    arXiv 2002.08546). The mean is that of the batch, which should hold several images of most classes.

    Use it where entropy alone collapses to few classes, and batches hold most classes.

    Args:
        balance: weight of the second term.
    """

    balance: float = 1.0

    def __call__(self, logits: Float[Tensor, "B C"], expert: Float[Tensor, "B C"] | None = None) -> Float[Tensor, ""]:
        return entropy(logits).mean() - self.balance * mean_prediction_entropy(logits)


@dataclass(frozen=True)
class ConfidentEntropy(Objective):
    """Entropy of confident predictions only (EATA, arXiv 2204.02610): those that are unsure have noisy gradients.

    Use it where many inputs are corrupted or of no class.

    Args:
        threshold: share of log C above which a prediction is left out.

    Raises:
        MergeError: a threshold outside (0, 1].
    """

    threshold: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold <= 1:
            raise MergeError(f"ConfidentEntropy: threshold={self.threshold} is outside (0, 1]: a share of log C")

    def __call__(self, logits: Float[Tensor, "B C"], expert: Float[Tensor, "B C"] | None = None) -> Float[Tensor, ""]:
        return confident_entropy(logits, self.threshold)


@dataclass(frozen=True)
class ExpertAgreement(Objective):
    """Kullback-Leibler divergence of the predictions from those of the task's own expert on the same unlabelled inputs.

    The experts are those of the configuration; without them, what the bank itself holds of every task (its origin and
    the task's delta). Where every input comes up again, the experts are asked once, before the first step; otherwise
    there is one more forward of each task's batch a step.

    Use it where the experts, or a bank that keeps them well, are at hand: it is the objective that is least likely
    to go wrong.

    Args:
        temperature: by which both logits are divided: above 1, classes that are not predicted count for more.
        of: `features` compares what the encoders answer instead, by 1 − cosine: no head takes part.

    Raises:
        MergeError: a temperature that is not above 0, or one for features; something else than the two.
    """

    temperature: float = 1.0
    of: Literal["predictions", "features"] = "predictions"
    asks_experts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise MergeError(f"ExpertAgreement: temperature={self.temperature}: expected a number above 0")
        if self.of_features and self.temperature != 1:
            raise MergeError("ExpertAgreement: features have no temperature: leave it out, or take of=predictions")

    @property
    def of_features(self) -> bool:
        return self.of == "features"

    def __call__(self, logits: Float[Tensor, "B C"], expert: Float[Tensor, "B C"] | None = None) -> Float[Tensor, ""]:
        assert expert is not None
        return feature_distance(logits, expert) if self.of_features else divergence(logits, expert, self.temperature)
