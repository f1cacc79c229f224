"""Views of a checkpoint: some of its weights, under the names that other files give them."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.families import FAMILIES
from lit_merge.checkpoints.updates import Update

# Beginnings of names that are tried, and names that they are found by.
LIKELY, SAMPLE = 8, 100


class Selection(Checkpoint):
    """Some weights of a checkpoint.

    Args:
        source: the whole.
        names: name of a weight here → its name there.
    """

    def __init__(self, source: Checkpoint, names: Mapping[str, str]) -> None:
        self.source, self.names = source, dict(names)
        self.label, self.inputs, self.metadata, self.naming = (
            source.label,
            source.inputs,
            source.metadata,
            source.naming,
        )
        self.shapes = {name: source.shapes[there] for name, there in names.items()}
        self.dtypes = {name: source.dtypes[there] for name, there in names.items()}
        self.nbytes = sum(self.dtypes[name].itemsize * math.prod(shape) for name, shape in self.shapes.items())

    def read(self, name: str) -> Tensor:
        return self.source.read(self.names[name])

    def read_into(self, name: str, out: Tensor, row: int = 0) -> None:
        self.source.read_into(self.names[name], out, row)

    def is_updated(self, name: str) -> bool:
        return self.source.is_updated(self.names[name])

    def update(self, name: str) -> Update | None:
        return self.source.update(self.names[name])

    def name_of(self, weight: str) -> str:
        return self.source.name_of(self.names.get(weight, weight))


def without(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """The checkpoint but for some weights; itself where it has none of them."""
    if not any(name in names for name in checkpoint.shapes):
        return checkpoint
    return Selection(checkpoint, {name: name for name in checkpoint.shapes if name not in names})


def named_like(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """A base under the experts' names, where theirs begin otherwise (`bert.`, which transformers puts before an encoder
    that has a head; wrappers of trainers), or are names of older files; itself otherwise. The beginning by which most
    weights fit counts: the base may lack some weights, and have others.

    Args:
        checkpoint: the base.
        shapes: of the experts' weights, by their names.
    """
    own = {name: name for name in checkpoint.shapes}
    names = {modernised(name): name for name in checkpoint.shapes}
    # Experts may have the old names too.
    names = max(names, own, key=lambda one: _fitting(one, checkpoint, shapes))
    best, most = names, _fitting(names, checkpoint, shapes)
    for added, taken in [] if most == len(shapes) else _ways(list(names), shapes):
        renamed = {_moved(name, added, taken): there for name, there in names.items()}
        if len(renamed) == len(names) and (fitting := _fitting(renamed, checkpoint, shapes)) > most:
            best, most = renamed, fitting
    same = all(name == there for name, there in best.items())
    return checkpoint if same else Selection(checkpoint, best)


def _moved(name: str, added: str, taken: str) -> str:
    return added + name.removeprefix(taken) if name.startswith(taken) else name


def _fitting(names: Mapping[str, str], checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many weights are the experts' by name and shape."""
    return sum(shapes.get(name) == checkpoint.shapes[there] for name, there in names.items())


def _ways(names: Sequence[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Beginnings to add to these names and to take away, under which some become those of others: the usual first."""
    ends: dict[str, list[str]] = defaultdict(list)
    for other in others:
        ends[_end(other)].append(other)
    found: Counter[tuple[str, str]] = Counter()
    for name in names[:: max(1, len(names) // SAMPLE)]:
        for other in ends[_end(name)]:
            here, there = name.split("."), other.split(".")
            while here and there and here[-1] == there[-1]:
                here.pop()
                there.pop()
            # Blocks of other numbers are others.
            if any(part.isdecimal() for part in (*here, *there)):
                continue
            found["".join(f"{part}." for part in there), "".join(f"{part}." for part in here)] += 1
    return [way for way, _ in found.most_common(LIKELY)]


def _end(name: str) -> str:
    """What is sure to be the same under any wrapper."""
    return ".".join(name.split(".")[-2:])


def modernised(name: str) -> str:
    """The name that the weight's family gives it today."""
    for old, new in ((old, new) for family in FAMILIES for old, new in family.old_names.items()):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
