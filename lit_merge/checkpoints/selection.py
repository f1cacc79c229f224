"""Views of a checkpoint: some of its weights, under the names that other files give them."""

import math
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from lit_merge.checkpoints.checkpoint import Checkpoint

# What layer normalisation was called in the first BERT, whose files still are.
OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Selection(Checkpoint):
    """Some weights of a checkpoint.

    Args:
        source: the whole.
        names: name of a weight here → its name there.
    """

    def __init__(self, source: Checkpoint, names: Mapping[str, str]) -> None:
        self.source, self.names = source, dict(names)
        self.label, self.files, self.metadata, self.naming = source.label, source.files, source.metadata, source.naming
        self.shapes = {name: source.shapes[there] for name, there in names.items()}
        self.dtypes = {name: source.dtypes[there] for name, there in names.items()}
        self.nbytes = sum(self.dtypes[name].itemsize * math.prod(shape) for name, shape in self.shapes.items())

    def read(self, name: str) -> Tensor:
        return self.source.read(self.names[name])

    def read_into(self, name: str, out: Tensor, row: int = 0) -> None:
        self.source.read_into(self.names[name], out, row)

    def name_of(self, weight: str) -> str:
        return self.source.name_of(self.names.get(weight, weight))


def without(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """The checkpoint but for some weights; itself where it has none of them."""
    if not any(name in names for name in checkpoint.shapes):
        return checkpoint
    return Selection(checkpoint, {name: name for name in checkpoint.shapes if name not in names})


def named_like(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """A base under the experts' names, where it differs by what comes before all names only (`bert.`, which
    transformers puts before an encoder that has a head) or names layer normalisation as the first BERT did; itself
    otherwise."""
    # Added to the base's names, and taken away.
    ways = [("", ""), (_common(names), ""), ("", _common(checkpoint.shapes))]
    for added, taken in ways:
        renamed = {added + modernised(name).removeprefix(taken): name for name in checkpoint.shapes}
        if renamed.keys() >= set(names):
            same = all(name == there for name, there in renamed.items())
            return checkpoint if same else Selection(checkpoint, renamed)
    return checkpoint


def modernised(name: str) -> str:
    """The name that transformers gives a weight today."""
    for old, new in OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _common(names: Iterable[str]) -> str:
    """What all names begin with up to their first dot; empty where they differ."""
    first = {name.partition(".")[0] for name in names}
    return f"{first.pop()}." if len(first) == 1 else ""
