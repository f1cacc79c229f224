"""What a method reads: the weights of all experts, as a transform makes them, as often as it asks."""

from collections.abc import Callable, Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from lit_merge.console import track_weights
from lit_merge.experts.experts import Experts, Piece
from lit_merge.experts.weight import Weight

Change = Callable[[Weight], Weight]


class WeightStream:
    """The weights of all experts, as often as they are iterated over, one in memory at a time.

    Args:
        experts: opened checkpoints.
        with_base: whether weights carry the pretrained checkpoint's values.
        change: what a transform makes of every weight.
    """

    def __init__(self, experts: Experts, with_base: bool, change: Change | None = None) -> None:
        self.experts, self.with_base, self.change = experts, with_base, change

    def __len__(self) -> int:
        return len(self.experts.shapes)

    def __iter__(self) -> Iterator[Weight]:
        return self.stream()

    def stream(self, pieces: Sequence[Piece] | None = None) -> Iterator[Weight]:
        """These weights, or rows of weights, in this order; None for all."""
        return map(self._changed, self.experts.stream(self.with_base, pieces))

    def blocks(self, name: str) -> list[Piece]:
        """See `Experts.blocks`; one block where a transform looks at whole weights."""
        return [(name, None)] if self.change is not None else self.experts.blocks(name)

    def vector_parts(self, length: int, doing: str) -> Iterator[Float[Tensor, "T _"]]:
        """τ_t of all floating-point weights, in parts of at most this length; `doing` labels the progress."""
        pieces = [piece for name in self.experts.shapes for piece in self.blocks(name)]
        for weight in track_weights(self.stream(pieces), self.experts.sizes_of(pieces), doing):
            if weight.experts.is_floating_point():
                yield from weight.vector_parts(length)

    def _changed(self, weight: Weight) -> Weight:
        return self.change(weight) if self.change is not None and weight.experts.is_floating_point() else weight
