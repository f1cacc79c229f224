"""What Hugging Face's CLIP calls the weights of open_clip's: one table for both directions."""

import re
from typing import NamedTuple


class Place(NamedTuple):
    """Where a weight lies in a file: the names of its parts, one above the other, and whether it lies transposed."""

    names: tuple[str, ...]
    transposed: bool = False

    @property
    def plain(self) -> bool:
        """Whether the weight lies there as it is, but for its name: rows of the one are rows of the other."""
        return len(self.names) == 1 and not self.transposed


# Of a block: each has a weight and a bias.
LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# `#` stands for the number of a block.
TOWERS = {"transformer.resblocks.#": "vision_model.encoder.layers.#"}
TOWERS |= {f"text.{ours}": theirs.replace("vision", "text") for ours, theirs in TOWERS.items()}
NORMS = {
    "ln_pre": "vision_model.pre_layrnorm",  # their spelling
    "ln_post": "vision_model.post_layernorm",
    "text.ln_final": "text_model.final_layer_norm",
}
SINGLE = {
    "class_embedding": Place(("vision_model.embeddings.class_embedding",)),
    "positional_embedding": Place(("vision_model.embeddings.position_embedding.weight",)),
    "conv1.weight": Place(("vision_model.embeddings.patch_embedding.weight",)),
    "proj": Place(("visual_projection.weight",), transposed=True),
    "text.token_embedding.weight": Place(("text_model.embeddings.token_embedding.weight",)),
    "text.positional_embedding": Place(("text_model.embeddings.position_embedding.weight",)),
    "text.text_projection": Place(("text_projection.weight",), transposed=True),
    "logit_scale": Place(("logit_scale",)),
}


def _places() -> dict[str, Place]:
    found = dict(SINGLE)
    for kind in ("weight", "bias"):
        found |= {f"{ours}.{kind}": Place((f"{theirs}.{kind}",)) for ours, theirs in NORMS.items()}
        for block, theirs in TOWERS.items():
            found |= {f"{block}.{own}.{kind}": Place((f"{theirs}.{other}.{kind}",)) for own, other in LAYERS.items()}
            # open_clip's attention has one matrix where theirs has three.
            parts = tuple(f"{theirs}.self_attn.{one}_proj.{kind}" for one in "qkv")
            found[f"{block}.attn.in_proj_{kind}"] = Place(parts)
    return found


PLACES = _places()
WEIGHTS = {name: weight for weight, place in PLACES.items() for name in place.names}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def hugging_face_place(weight: str) -> Place | None:
    """Where Hugging Face's CLIP has this weight of open_clip's; None where it has none.

    >>> hugging_face_place("text.transformer.resblocks.3.ln_1.bias")
    Place(names=('text_model.encoder.layers.3.layer_norm1.bias',), transposed=False)
    """
    number = _NUMBER.search(weight)
    place = PLACES.get(_NUMBER.sub("#", weight, count=1))
    if place is None or number is None:
        return place
    return place._replace(names=tuple(name.replace("#", number.group()) for name in place.names))


def open_clip_weight(name: str) -> str | None:
    """The weight of open_clip's to which this one of Hugging Face's belongs, whole or a part; None where it has none.

    >>> open_clip_weight("vision_model.encoder.layers.3.self_attn.k_proj.bias")
    'transformer.resblocks.3.attn.in_proj_bias'
    """
    number = _NUMBER.search(name)
    weight = WEIGHTS.get(_NUMBER.sub("#", name, count=1))
    return weight if weight is None or number is None else weight.replace("#", number.group())
