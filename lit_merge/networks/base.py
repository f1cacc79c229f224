"""An encoder whose weights are handed to every forward, and the frozen heads on it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, cat, nn
from torch.func import functional_call

from lit_merge.errors import MergeError
from lit_merge.networks.heads import CosineHeads


class Network(nn.Module, ABC):
    """`encoder` has the names and shapes of the experts' weights; its own values are never used."""

    encoder: nn.Module
    heads: CosineHeads

    @abstractmethod
    def prepare(self, inputs: Tensor) -> Tensor:
        """What the data holds → what the encoder takes."""

    def token_mask(self, inputs: Tensor) -> Tensor | None:
        """(B, S) for inputs of S tokens each: which are no padding, so that statistics count them. None: all."""
        return None

    def forward(self, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, C) of every task, from one forward over the inputs of all tasks together."""
        batch = self.prepare(cat(list(inputs.values())))
        features = functional_call(self.encoder, dict(weights), (batch,))
        parts = features.split([len(x) for x in inputs.values()])
        return {task: self.heads(part, task) for task, part in zip(inputs, parts, strict=True)}

    def check(self, weights: Mapping[str, tuple[int, ...]]) -> None:
        """Raises MergeError where names or shapes of the experts' weights are not the encoder's."""
        own = {name: tuple(value.shape) for name, value in self.encoder.state_dict().items()}
        for name in sorted(own.keys() ^ weights.keys()):
            where = "the experts have" if name in weights else "the network has"
            lacks = "the network has not" if name in weights else "the experts have not"
            raise MergeError(
                f"{where} a weight {name}, {lacks}: take the configuration that the experts were trained with",
                weight=name,
            )
        for name, shape in own.items():
            if shape != weights[name]:
                raise MergeError(
                    f"{name} has shape {list(shape)} in the network and {list(weights[name])} in the experts",
                    weight=name,
                )

    def freeze(self) -> None:
        """Called once built: nothing in a network is trained, and dropout stays off."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Network":
        return super().train(False)
