"""Weights of any naming as the canonical ones, and back: to the bit, both ways from one table."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.naming import Naming, detect
from lit_merge.checkpoints.updates import Update, stacked
from lit_merge.errors import MergeError


class Renamed(Checkpoint):
    """A view of a checkpoint by canonical names: weights in several parts are put together when they are read, and
    transposed ones turned.

    Raises:
        MergeError: a part that is missing, or parts that do not fit together.
    """

    def __init__(self, source: Checkpoint, naming: Naming) -> None:
        self.source, self.naming = source, naming
        self.label, self.nbytes, self.tied = source.label, source.nbytes, source.tied
        self.places = naming.places(source.shapes, source.label)
        self.shapes, self.dtypes = {}, {}
        self.inputs, self.metadata = source.inputs, source.metadata
        unfit = {naming.weight(name): what for name, what in source.unfit.items()}
        self.unfit = {weight: what for weight, what in unfit.items() if weight is not None}
        for weight, place in self.places.items():
            first, *others = place.names
            shape, self.dtypes[weight] = source.shapes[first], source.dtypes[first]
            for name in others:
                if source.shapes[name] != shape or source.dtypes[name] != source.dtypes[first]:
                    raise MergeError(
                        f"{source.label}: {name} is {source.dtypes[name]} of shape {list(source.shapes[name])}, "
                        f"{first} is {source.dtypes[first]} of shape {list(shape)}: expected the same",
                        weight=name,
                    )
            shape = shape[::-1] if place.transposed else shape
            self.shapes[weight] = (len(place.names) * shape[0], *shape[1:]) if others else shape

    def read(self, name: str) -> Tensor:
        place = self.places[name]
        return _join([self.source.read(part) for part in place.names], place.transposed)

    def read_into(self, name: str, out: Tensor, row: int = 0) -> None:
        if self.places[name].plain:
            self.source.read_into(self.places[name].names[0], out, row)
        else:
            super().read_into(name, out, row)

    def is_updated(self, name: str) -> bool:
        return any(self.source.is_updated(part) for part in self.places[name].names)

    def update(self, name: str) -> Update | None:
        place = self.places[name]
        parts = [self.source.update(part) for part in place.names]
        if any(part is None for part in parts):
            return None
        whole = stacked([part for part in parts if part is not None])
        return whole.turned() if place.transposed else whole

    def name_of(self, weight: str) -> str:
        try:
            return ", ".join(self.naming.place(weight).names)
        except MergeError:
            return weight  # of a family that has no such weight


class Named(Checkpoint):
    """A view of a checkpoint of canonical names by another naming. One whole weight is read for each of its parts.

    Raises:
        MergeError: a weight that the naming's family does not have.
    """

    def __init__(self, source: Checkpoint, naming: Naming) -> None:
        self.source, self._naming = source, naming
        self.label, self.inputs, self.metadata = source.label, source.inputs, source.metadata
        self.nbytes, self._weights = source.nbytes, {}
        self.shapes, self.dtypes = {}, {}
        for weight, shape in source.shapes.items():
            empty = torch.empty(shape, dtype=source.dtypes[weight], device="meta")
            for name, part in rename({weight: empty}, naming).items():
                self._weights[name], self.shapes[name], self.dtypes[name] = weight, tuple(part.shape), part.dtype

    def read(self, name: str) -> Tensor:
        weight = self._weights[name]
        return rename({weight: self.source.read(weight)}, self._naming)[name].contiguous()


def canonical(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint of any naming by canonical names; itself, where it goes by them already or is no CLIP's.

    Raises:
        MergeError: a file of two namings, or one that lacks a part.
    """
    naming = detect(checkpoint.shapes, checkpoint.label)
    return checkpoint if naming.identity else Renamed(checkpoint, naming)


def canonical_weights(weights: Mapping[str, Tensor], label: str = "state dict") -> dict[str, Tensor]:
    """Weights of any naming by canonical names, differentiable.

    Raises:
        MergeError: names of two families, or a part that is missing.
    """
    naming = detect(weights, label)
    places = naming.places(weights, label)
    if naming.identity:
        return dict(weights)
    return {name: _join([weights[one] for one in place.names], place.transposed) for name, place in places.items()}


def rename(weights: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """Weights of canonical names by another naming, differentiable. Parts of one weight are views of it.

    Raises:
        MergeError: a weight that the naming's family does not have.
    """
    if naming.identity:
        return dict(weights)
    found: dict[str, Tensor] = {}
    for weight, value in weights.items():
        place = naming.place(weight)
        turned = value.mT.contiguous() if place.transposed else value
        parts = turned.chunk(len(place.names)) if len(place.names) > 1 else [turned]
        found |= dict(zip(place.names, parts, strict=True))
    return found


def _join(parts: Sequence[Tensor], transposed: bool) -> Tensor:
    whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
    return whole.mT.contiguous() if transposed else whole
