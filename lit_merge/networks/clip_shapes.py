"""Which CLIP weights are of: sizes of the image tower from the shapes, and open_clip's names of models that have them.

open_clip is not imported, which takes seconds: its configurations are files.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
BLOCK = "transformer.resblocks."


@dataclass(frozen=True)
class TowerSizes:
    """Sizes of a vision transformer of CLIP.

    Attributes:
        width: of a token.
        layers: number of blocks.
        patch_size: side of a patch, in pixels.
        image_size: side of the square images, in pixels.
        mlp_width: of the hidden layer of a block's MLP.
        embed_dim: of the features; None where the tower has no projection.
    """

    width: int
    layers: int
    patch_size: int
    image_size: int
    mlp_width: int
    embed_dim: int | None

    def __str__(self) -> str:
        return (
            f"a vision transformer of width {self.width}, {self.layers} blocks, patches of {self.patch_size}, "
            f"images of {self.image_size} × {self.image_size}"
        )


def tower_sizes(shapes: Shapes) -> TowerSizes | None:
    """Sizes of the image tower with these canonical names and shapes; None for what is no vision transformer."""
    try:
        width, _, patch_size, _ = shapes["conv1.weight"]
        tokens, _ = shapes["positional_embedding"]
        mlp_width, _ = shapes[f"{BLOCK}0.mlp.c_fc.weight"]
    except (KeyError, ValueError):
        return None
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith(BLOCK)}
    # One token is the class's.
    grid = math.isqrt(tokens - 1)
    embed_dim = shapes["proj"][1] if "proj" in shapes else None
    return TowerSizes(width, len(layers), patch_size, grid * patch_size, mlp_width, embed_dim)


def open_clip_names(sizes: TowerSizes) -> list[str]:
    """open_clip's names of the models whose image tower has these sizes, the shortest first. Those that differ by what
    no weight shows, as the activation (`-quickgelu`), are all among them."""
    spec = find_spec("open_clip")
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = sorted(file for folder in folders for file in Path(folder, "model_configs").glob("*.json"))
    found = [file.stem for file in files if has_sizes(json.loads(file.read_text(encoding="utf-8")), sizes)]
    return sorted(found, key=lambda name: (len(name), name))


def has_sizes(options: Mapping[str, Any], sizes: TowerSizes) -> bool:
    """Whether open_clip's options of a model are of an image tower of these sizes."""
    vision = options.get("vision_cfg")
    if not isinstance(vision, Mapping) or "timm_model_name" in vision or "patch_size" not in vision:
        return False
    width, image_size = vision.get("width"), vision.get("image_size", 224)
    return (
        (width, vision.get("layers"), vision["patch_size"]) == (sizes.width, sizes.layers, sizes.patch_size)
        and image_size in (sizes.image_size, [sizes.image_size, sizes.image_size])
        and int(width * vision.get("mlp_ratio", 4.0)) == sizes.mlp_width
        and sizes.embed_dim in (None, options.get("embed_dim"))
    )
