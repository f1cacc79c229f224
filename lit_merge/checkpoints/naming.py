"""How a file names its weights. Inside, those of a CLIP have canonical names, so that files of all families fit."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from lit_merge.checkpoints.families import FAMILIES, ClipFamily, Family, clip_families, has_role
from lit_merge.checkpoints.families.family import Place, is_image
from lit_merge.errors import MergeError

CANONICAL = "canonical"


def naming_names() -> list[str]:
    """What an output may be named as: any family of CLIPs, or `canonical`, the names that a bank has inside."""
    return [*(family.name for family in clip_families()), CANONICAL]


if TYPE_CHECKING:
    NamingName = str
else:
    NamingName = Literal[tuple(naming_names())]


@dataclass(frozen=True)
class Naming:
    """The names in a file, relative to the canonical ones.

    Canonical are the names of open_clip's image tower (`conv1.weight`, `transformer.resblocks.0.attn.in_proj_weight`),
    `text.…` for its text tower, `logit_scale`, and `other.…` for what is not part of the model. Any model that is no
    CLIP keeps its names (`plain`).

    Args:
        family: name of the family.
        prefix: what the model's names begin with: `module.`, `model.`, ….
        image: what the names of the image tower begin with after that; nothing where it stands alone.
        text: what the names of open_clip's text tower begin with after that: nothing, or `text.`.
    """

    family: str = "plain"
    prefix: str = ""
    image: str = ""
    text: str = ""

    @property
    def rules(self) -> Family:
        """What is said of the family."""
        return next(one for one in FAMILIES if one.name == self.family)

    @property
    def identity(self) -> bool:
        """Whether files name their weights by the canonical names."""
        return not (self.prefix or self.image or self.rules.translates)

    def place(self, weight: str) -> Place:
        """Where the weight of this canonical name is in the file.

        Raises:
            MergeError: the family has no such weight.
        """
        if self.identity:
            return Place((weight,))
        if weight.startswith("other."):
            return Place((weight.removeprefix("other."),))
        place = self.rules.place(weight, self.image, self.text)
        if place is None:
            raise MergeError(
                f"{self.rules.title}'s CLIP has no weight for {weight}: leave naming out, or take open_clip's",
                weight=weight,
            )
        return place._replace(names=tuple(self.prefix + name for name in place.names))

    def weight(self, name: str) -> str | None:
        """The canonical name of the weight of which `name` in the file is the whole or a part; None for no weight."""
        if self.identity:
            return name
        if has_role("buffer", name):
            return None
        inside = name.removeprefix(self.prefix)
        own = name.startswith(self.prefix)
        return (self.rules.weight(inside, self.image, self.text) if own else None) or f"other.{name}"

    def places(self, names: Collection[str], label: str) -> dict[str, Place]:
        """Canonical name → where it is, of every weight of a file with these names.

        Raises:
            MergeError: a weight of which a part is missing; `label` says where.
        """
        weights = {name: weight for name in names if (weight := self.weight(name)) is not None}
        # In the order of safetensors files, whatever the other names' order is.
        found = {weight: self.place(weight) for weight in sorted(set(weights.values()))}
        for place in found.values():
            for name in place.names:
                if name not in names:
                    there = next(one for one in place.names if one in names)
                    raise MergeError(
                        f"{label} has {there} but no weight {name}: it was not converted whole", weight=name
                    )
        return found


PLAIN = Naming()


def detect(names: Collection[str], label: str = "state dict") -> Naming:
    """The naming of a file by the names in it alone; `PLAIN` for what is no CLIP.

    Raises:
        MergeError: names of two families in one image tower; `label` says where.
    """
    families = [one for one in clip_families() if not one.found_as]
    signed = [(one, tower) for one in families for tower in one.towers(names)]
    first = dict(reversed(signed))
    if len(first) > 1:
        one, other, *_ = (family for family in families if family in first)
        raise _half(label, first[one] + one.signature[0], one, first[other] + other.signature[0], other)
    towers = signed or [(one, tower) for one in families for tower in one.towers_of_whole(names)]
    if len(towers) != 1:
        # No CLIP, or several: a pair of teacher and student fits another pair by its names.
        return PLAIN
    ((family, tower),) = towers
    for other in families if signed else ():
        for name in names:
            if other is not family and name.startswith(tower) and any(s in name[len(tower) :] for s in other.signs):
                raise _half(label, tower + family.signature[0], family, name, other)
    image = family.image if tower == family.image or tower.endswith(f".{family.image}") else ""
    prefix = tower.removesuffix(image)
    texts = family.text and image and any(name.startswith(prefix + family.text) for name in names)
    return Naming(family.name, prefix, image, family.text if texts else "")


def check_naming(naming: str) -> None:
    """Raises MergeError where there is no naming of this name."""
    names = naming_names()
    if naming not in names:
        near = get_close_matches(naming, names, n=1, cutoff=0)
        raise MergeError(f"naming={naming!r}: expected one of {', '.join(names)}; the nearest is {near[0]}")


def named(naming: str, weights: Iterable[str]) -> Naming:
    """The naming of this name, for a model with these canonical names.

    Raises:
        MergeError: no such naming, or the model is no CLIP.
    """
    check_naming(naming)
    weights = set(weights)
    if naming == CANONICAL:
        return PLAIN
    if not any(is_image(name) and name.endswith(("class_embedding", "conv1.weight")) for name in weights):
        raise MergeError(
            f"naming={naming}: these weights ({', '.join(sorted(weights)[:3])}, …) are not a CLIP's: leave naming out"
        )
    family = next(one for one in clip_families() if one.name == naming)
    alone = family.image_alone and all(is_image(name) or name.startswith("other.") for name in weights)
    return Naming(family.found_as or family.name, image="" if alone else family.image)


def _half(label: str, own: str, family: ClipFamily, foreign: str, other: ClipFamily) -> MergeError:
    return MergeError(
        f"{label} has {own}, as {family.title} names it, and {foreign}, as {other.title} does: convert it whole, "
        "or take the file that it was made from",
        weight=foreign,
    )
