"""What a method reads: the weights of all experts, as a transform makes them, as often as it asks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from lit_merge.experts.decompositions import Decompositions
from lit_merge.experts.experts import Experts, Piece
from lit_merge.experts.weight import Weight

Change = Callable[[Weight], Weight]


class WeightStream:
    """The weights of all experts, as often as they are iterated over, one in memory at a time.

    Args:
        experts: opened checkpoints.
        with_base: whether weights carry the pretrained checkpoint's values.
        change: what a transform makes of every weight.
        decompositions: kept for weights as they come out of this stream.
    """

    def __init__(
        self,
        experts: Experts,
        with_base: bool,
        change: Change | None = None,
        decompositions: Decompositions | None = None,
    ) -> None:
        self.experts, self.with_base = experts, with_base
        self.change, self.decompositions = change, decompositions

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

    def _changed(self, weight: Weight) -> Weight:
        kept = replace(weight, decompositions=self.decompositions)
        return self.change(kept) if self.change is not None and weight.experts.is_floating_point() else kept
