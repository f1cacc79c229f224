"""What is said of a family: how its files name weights, and the names of weights that play a role."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

Role = Literal[
    "block",  # of attention or MLP: a part of the name behind the number of the block
    "text_projection",  # from the text tower to the features that both towers share
    "vocabulary",  # a row for every token
    "token_columns",  # a vocabulary too, with a column for every token
    "output_layer",  # from features to tokens
    "segments",  # a table with a row for the first text of a pair, and one for the second
    "no_tokens",  # rows that cannot be tokens, even where there are as many
    "buffer",  # counters and masks, which are not learnt, and which some versions of a library write
]
SCALES = ("logit_scale", "logit_bias")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class Place(NamedTuple):
    """Where a weight is in a file: the names of its parts, one above the other, and whether it is transposed there."""

    names: tuple[str, ...]
    transposed: bool = False

    @property
    def plain(self) -> bool:
        """Whether the weight is the same there but for its name: rows of the one are rows of the other."""
        return len(self.names) == 1 and not self.transposed


@dataclass(frozen=True, eq=False)
class Family:
    """Models whose weights have the canonical names, which are all that any model but a CLIP has.

    Args:
        name: in configurations and banks.
        title: in messages.
        roles: role → regular expression that is found in the names of such weights, in letters of either case. It is
            looked for in the names of all models.
        old_names: ends of names that old files have → what they are today.
        may_lack: canonical names of weights that some models of the family end before.
        files: what the file of weights in a model's folder is called, or its index of shards; the first counts.
    """

    name: str
    title: str
    roles: Mapping[Role, str] = field(default_factory=dict)
    old_names: Mapping[str, str] = field(default_factory=dict)
    may_lack: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    translates: ClassVar[bool] = False
    """Whether weights have names other than the canonical ones, whatever the names begin with."""

    def place(self, weight: str, image: str, text: str) -> Place | None:
        """Where the weight of a canonical name is in a file; None where the family has no such weight.

        Args:
            weight: its canonical name.
            image, text: what the names of the towers begin with in the file.
        """
        if is_image(weight):
            return Place((image + weight,))
        return Place((text + weight.removeprefix("text.") if weight.startswith("text.") else weight,))

    def weight(self, name: str, image: str, text: str) -> str | None:
        """The canonical name of the weight of which `name` is the whole or a part; None for what is not the model's."""
        if name.startswith(image):
            return name.removeprefix(image)
        if name in SCALES or (text and name.startswith(("text.", "text_decoder."))):
            return name
        return None if text else f"text.{name}"


@dataclass(frozen=True, eq=False, kw_only=True)
class ClipFamily(Family):
    """CLIPs whose weights have the canonical names, those of open_clip, behind what the names of a tower begin with.

    Args:
        image: what the names of the image tower begin with in a whole model.
        signature: ends of names that, behind one beginning, the image tower has in this family and in no other; the
            first is named in messages.
        signs: what names of image towers have in them in this family and in no other.
        whole_signature: a name in whole models, by which towers without the signature are found.
        text: what the names of the text tower begin with in those whole models that have a beginning there.
        image_alone: whether the image tower is written without `image` where there is no other tower.
        found_as: the family that its files are said to be of, where names do not tell the two apart.
    """

    image: str
    signature: tuple[str, ...]
    signs: tuple[str, ...]
    whole_signature: str = ""
    text: str = ""
    image_alone: bool = False
    found_as: str = ""

    def towers(self, names: Collection[str]) -> list[str]:
        """What the names of every image tower with the signature begin with."""
        first, *others = self.signature
        found = [name.removesuffix(first) for name in names if name == first or name.endswith(f".{first}")]
        return [one for one in found if all(one + other in names for other in others)]

    def towers_of_whole(self, names: Collection[str]) -> list[str]:
        """What the names of every image tower in a whole model begin with, whatever its architecture."""
        last = self.whole_signature
        roots = [name.removesuffix(last) for name in names if last and name.rpartition(".")[2] == last]
        return [root + self.image for root in roots if any(name.startswith(root + self.image) for name in names)]


@dataclass(frozen=True, eq=False, kw_only=True)
class TranslatedClip(ClipFamily):
    """CLIPs whose weights have names of their own, by a table that is read in both directions.

    Args:
        places: canonical name → where the weight is in a whole model, `#` for the number of a block.
    """

    places: Mapping[str, Place]
    translates: ClassVar[bool] = True

    def place(self, weight: str, image: str, text: str) -> Place | None:
        number = _NUMBER.search(weight)
        place = self.places.get(_NUMBER.sub("#", weight, count=1))
        if place is None:
            return None
        names = (image + name.removeprefix(self.image) if name.startswith(self.image) else name for name in place.names)
        return place._replace(names=tuple(name.replace("#", number.group()) if number else name for name in names))

    def weight(self, name: str, image: str, text: str) -> str | None:
        return (None if image else self._whole(self.image + name)) or self._whole(name)

    def _whole(self, name: str) -> str | None:
        """The canonical name of what a whole model calls `name`."""
        number = _NUMBER.search(name)
        weight = self._weights.get(_NUMBER.sub("#", name, count=1))
        return weight.replace("#", number.group()) if weight and number else weight

    @cached_property
    def _weights(self) -> dict[str, str]:
        return {name: weight for weight, place in self.places.items() for name in place.names}


def is_image(weight: str) -> bool:
    """Whether a canonical name is of a CLIP's image tower."""
    return weight not in SCALES and not weight.startswith(("text.", "text_decoder.", "other."))
