"""What adaptation minimises on unlabelled data: pure functions, and thin classes that configurations name."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


def entropy(logits: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """−Σ_c p_c·log p_c of softmax(logits), in nats, from log-softmax: exact for confident predictions too.

    >>> import torch
    >>> entropy(torch.zeros(1, 4)).exp().round().item()
    4.0
    """
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


class Objective(ABC):
    """A loss of one task's logits; the loss of a step is the mean over tasks."""

    @abstractmethod
    def __call__(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
        """The loss of one batch of one task."""


@dataclass(frozen=True)
class Entropy(Objective):
    """Mean entropy of the predictions (AdaMerging, arXiv 2310.02575).

    Args:
        per_log_classes: divide by log C, so that tasks with many classes weigh no more than others.
    """

    per_log_classes: bool = False

    def __call__(self, logits: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
        mean = entropy(logits).mean()
        return mean / math.log(logits.shape[-1]) if self.per_log_classes else mean
