"""How files name the weights of a CLIP: everything inside goes by one naming, so that files of several fit together."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from lit_merge.checkpoints.clip_names import Place, hugging_face_place, open_clip_weight
from lit_merge.errors import MergeError

Family = Literal["plain", "open_clip", "hugging_face"]
NamingName = Literal["open_clip", "openai", "hugging_face", "canonical"]
"""What an output may be named as: open_clip's image tower, or its whole model where there is a text tower; OpenAI's
release, whose image tower is `visual.…` always; Hugging Face's CLIP; or the names that a bank has inside."""

# Counters and masks that some versions of the libraries write and others do not; none of them is learnt.
BUFFERS = ("position_ids", "attn_mask", "input_resolution", "context_length", "vocab_size")
SCALES = ("logit_scale", "logit_bias")
# A name that only the family has, and what then lies beside it.
SIGNATURES: dict[Family, tuple[str, tuple[str, ...]]] = {
    "open_clip": ("class_embedding", ("conv1.weight",)),
    "hugging_face": (
        "embeddings.class_embedding",
        ("embeddings.patch_embedding.weight", "pre_layrnorm.weight"),
    ),
}
# What the image tower of the other family would have.
FOREIGN = {"open_clip": (".self_attn.", "encoder.layers."), "hugging_face": (".resblocks.", ".in_proj_")}
TITLES = {"open_clip": "open_clip", "hugging_face": "Hugging Face"}


@dataclass(frozen=True)
class Naming:
    """The names in a file, relative to the canonical ones.

    Canonical are the names of open_clip's image tower (`conv1.weight`, `transformer.resblocks.0.attn.in_proj_weight`),
    `text.…` for its text tower, `logit_scale`, and `other.…` for what lies beside the model. Any model that is no CLIP
    keeps its names (`plain`).

    Args:
        family: which library's names.
        prefix: what the model's names begin with: `module.`, `model.`, ….
        image: what the names of the image tower begin with after that; nothing where it stands alone.
        text: the same of open_clip's text tower: nothing, or `text.`.
    """

    family: Family = "plain"
    prefix: str = ""
    image: str = ""
    text: str = ""

    @property
    def identity(self) -> bool:
        """Whether files name their weights by the canonical names."""
        return self.family != "hugging_face" and not self.prefix and not self.image

    def place(self, weight: str) -> Place:
        """Where a weight of this canonical name lies in the file.

        Raises:
            MergeError: the library has no such weight.
        """
        if self.identity:
            return Place((weight,))
        if weight.startswith("other."):
            return Place((weight.removeprefix("other."),))
        if self.family == "hugging_face":
            return self._hugging_face_place(weight)
        if is_image(weight):
            return Place((f"{self.prefix}{self.image}{weight}",))
        inside = weight.startswith("text.")
        return Place((self.prefix + (self.text + weight.removeprefix("text.") if inside else weight),))

    def weight(self, name: str) -> str | None:
        """The canonical name of what a file calls `name`, whole or a part of it; None for what is no weight."""
        if self.identity:
            return name
        if name.rpartition(".")[2] in BUFFERS:
            return None
        inside = name.removeprefix(self.prefix)
        weight = self._hugging_face_weight if self.family == "hugging_face" else self._open_clip_weight
        return (weight(inside) if name.startswith(self.prefix) else None) or f"other.{name}"

    def places(self, names: Collection[str], label: str) -> dict[str, Place]:
        """Canonical name → where it lies, of every weight of a file with these names.

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

    def _hugging_face_place(self, weight: str) -> Place:
        place = hugging_face_place(weight)
        if place is None:
            raise MergeError(
                f"Hugging Face's CLIP has no weight for {weight}: leave naming out, or take open_clip's", weight=weight
            )
        tower = "vision_model."
        names = (self.image + name.removeprefix(tower) if name.startswith(tower) else name for name in place.names)
        return place._replace(names=tuple(self.prefix + name for name in names))

    def _hugging_face_weight(self, inside: str) -> str | None:
        alone = None if self.image else open_clip_weight(f"vision_model.{inside}")
        return alone or open_clip_weight(inside)

    def _open_clip_weight(self, inside: str) -> str | None:
        if inside.startswith(self.image):
            return inside.removeprefix(self.image)
        if inside in SCALES or (self.text and inside.startswith(("text.", "text_decoder."))):
            return inside
        return None if self.text else f"text.{inside}"


PLAIN = Naming()


def is_image(weight: str) -> bool:
    """Whether a canonical name is of a CLIP's image tower."""
    return weight not in SCALES and not weight.startswith(("text.", "text_decoder.", "other."))


def detect(names: Collection[str], label: str = "state dict") -> Naming:
    """The naming of a file with these names, of which nothing else is looked at; `PLAIN` for what is no CLIP.

    Raises:
        MergeError: names of two libraries in one image tower; `label` says where.
    """
    towers = _towers(names)
    if len({family for family, _ in towers}) > 1:
        (one, first), (other, second) = (next(t for t in towers if t[0] == family) for family in SIGNATURES)
        raise _half(label, first + SIGNATURES[one][0], one, second + SIGNATURES[other][0], other)
    if len(towers) != 1:
        # No CLIP, or several: a pair of teacher and student fits another pair by its names.
        return PLAIN
    family, tower = towers[0]
    foreign = next(
        (n for n in names if n.startswith(tower) and any(sign in n[len(tower) :] for sign in FOREIGN[family])), None
    )
    if foreign is not None:
        other = next(one for one in SIGNATURES if one != family)
        own = next(name for name in names if name.startswith(tower) and name.endswith("class_embedding"))
        raise _half(label, own, family, foreign, other)
    image = "vision_model." if family == "hugging_face" else "visual."
    image = image if tower == image or tower.endswith(f".{image}") else ""
    prefix = tower.removesuffix(image)
    text = "text." if image and any(name.startswith(f"{prefix}text.") for name in names) else ""
    return Naming(family, prefix, image, text if family == "open_clip" else "")


def named(naming: str, weights: Iterable[str]) -> Naming:
    """The naming of this name, for a model with these canonical names.

    Raises:
        MergeError: no such naming, or the model is no CLIP.
    """
    if naming not in get_args(NamingName):
        raise MergeError(f"naming={naming!r}: expected one of {', '.join(get_args(NamingName))}")
    weights = set(weights)
    if naming == "canonical":
        return PLAIN
    if not any(is_image(name) and name.endswith(("class_embedding", "conv1.weight")) for name in weights):
        raise MergeError(
            f"naming={naming}: these weights ({', '.join(sorted(weights)[:3])}, …) are not a CLIP's: leave naming out"
        )
    if naming == "hugging_face":
        return Naming("hugging_face", image="vision_model.")
    alone = naming == "open_clip" and all(is_image(name) or name.startswith("other.") for name in weights)
    return Naming("open_clip", image="" if alone else "visual.")


def _towers(names: Collection[str]) -> list[tuple[Family, str]]:
    """Family and prefix of every image tower."""
    found: list[tuple[Family, str]] = []
    for family, (last, beside) in SIGNATURES.items():
        prefixes = [name.removesuffix(last) for name in names if name == last or name.endswith(f".{last}")]
        found += [(family, one) for one in prefixes if all(one + other in names for other in beside)]
    if not found:
        # Towers of other kinds (ResNet, timm) have no name in common, but the whole model has.
        roots = [name.removesuffix("logit_scale") for name in names if name.rpartition(".")[2] == "logit_scale"]
        found += [
            ("open_clip", f"{root}visual.") for root in roots if any(n.startswith(f"{root}visual.") for n in names)
        ]
    return found


def _half(label: str, own: str, family: Family, foreign: str, other: Family) -> MergeError:
    return MergeError(
        f"{label} has {own}, as {TITLES[family]} names it, and {foreign}, as {TITLES[other]} does: convert it whole, "
        "or take the file that it was made from",
        weight=foreign,
    )
