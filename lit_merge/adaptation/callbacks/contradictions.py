"""Callbacks that contradict each other are refused before a fit starts."""

from lightning.pytorch import Callback, Trainer

from lit_merge.errors import MergeError


def refuse_second(callback: Callback, trainer: Trainer) -> None:
    """Raises MergeError where a trainer has two callbacks of a kind of which only one can have its way."""
    kind = type(callback)
    if sum(isinstance(one, kind) for one in trainer.callbacks) > 1:  # type: ignore[attr-defined]
        raise MergeError(f"the trainer has more than one {kind.__name__}, which would contradict each other: keep one")
