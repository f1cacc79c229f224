"""The checkpoint that a bank's origin is a difference from, which is not in the bank."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_merge.checkpoints import Checkpoint, canonical, open_checkpoint
from lit_merge.checkpoints.hub import PREFIX
from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.tensor_values import checksum
from lit_merge.errors import MergeError


class BaseReference:
    """A base that was found, of the weights that the bank has. Each is looked at the first time that it is read.

    Args:
        checkpoint: with canonical names.
        bank: what refers to it, for messages.
        sums: weight → checksum of its values.
    """

    def __init__(self, checkpoint: Checkpoint, bank: Path, sums: Mapping[str, str]) -> None:
        self.checkpoint, self.bank, self.sums = checkpoint, bank, sums
        self.inputs: tuple[InputFile, ...] = checkpoint.inputs
        self._seen: set[str] = set()

    def read(self, name: str) -> Tensor:
        """A weight.

        Raises:
            MergeError: it is not what it was when the bank was made.
        """
        value = self.checkpoint.read(name)
        if name not in self._seen:
            if checksum(value) != self.sums[name]:
                raise self._changed(name, "its values are others")
            self._seen.add(name)
        return value

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raises MergeError where the base lacks one of these weights."""
        for name, shape in shapes.items():
            if name not in self.checkpoint.shapes:
                raise self._changed(name, "it has no such weight")
            if self.checkpoint.shapes[name] != tuple(shape):
                raise self._changed(name, f"its shape is {list(self.checkpoint.shapes[name])}, not {list(shape)}")

    def _changed(self, name: str, how: str) -> MergeError:
        return MergeError(
            f"{self.checkpoint.label} is not the base that {self.bank} was made with: {name}: {how}; name the right "
            "one with --model.base (from Python: TaskBank.load(…, base=…))",
            weight=name,
        )


def described(location: str, checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, Any]:
    """What a bank says of its base: where it was, and checksums of its weights."""
    place = location if ":" in location else str(Path(location).expanduser().absolute())
    return {"location": place, "checksums": {name: checksum(checkpoint.read(name)) for name in names}}


def find_base(about: Mapping[str, Any], bank: Path, location: str | Path | None = None) -> BaseReference:
    """Opens the base of a bank: at `location`, or else where it was, or next to the bank.

    Raises:
        MergeError: it is at none of these places, or cannot be opened.
    """
    stored = str(about["location"])
    places: list[str | Path] = [stored if location is None else location]
    if location is None and not stored.startswith(PREFIX) and not stored.startswith("zoo:"):
        name = Path(stored).name
        places = [place for place in (Path(stored), bank / name, bank.parent / name) if place.exists()] or places
    try:
        return BaseReference(canonical(open_checkpoint(places[0], "base")), bank, about["checksums"])
    except MergeError as error:
        raise MergeError(
            f"{bank} is stored as a difference from {stored}, which cannot be opened; name it with --model.base (from "
            f"Python: TaskBank.load(…, base=…)): {error}"
        ) from error


def check_base(shapes: Mapping[str, tuple[int, ...]], base: Checkpoint) -> None:
    """Raises MergeError where a base lacks weights of a bank, which have these shapes."""
    for name, shape in shapes.items():
        if base.shapes.get(name) != shape:
            there = "no such weight" if name not in base.shapes else f"shape {list(base.shapes[name])}"
            raise MergeError(
                f"{base.label} cannot be the base of this bank: {name} has shape {list(shape)} in the bank, "
                f"{there} in it",
                weight=name,
            )
