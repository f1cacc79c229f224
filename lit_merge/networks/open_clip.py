"""Image towers of open_clip."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
from open_clip import get_model_config, list_models
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import _build_vision_tower
from torch import Tensor, tensor

from lit_merge.errors import MergeError
from lit_merge.locations import resolve
from lit_merge.networks.base import Network
from lit_merge.networks.heads import CosineHeads


class OpenClipImageEncoder(Network):
    """The image tower of an open_clip model with frozen heads on it. Images are uint8, (B, H, W) or (B, 3, H, W).

    Args:
        config: name of an open_clip model (`ViT-B-32`), or path of its JSON configuration.
        heads: path of a safetensors file {task: (classes, width)}.

    Raises:
        MergeError: an unknown name, a file that is missing or no such configuration, heads that cannot be read.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: str, heads: str) -> None:
        super().__init__()
        options = read_config(config)
        try:
            self.encoder = _build_vision_tower(
                options["embed_dim"], options["vision_cfg"], options.get("quick_gelu", False)
            )
        except (KeyError, TypeError) as error:
            raise MergeError(f"{config} is no open_clip configuration: {error!r}") from error
        self.heads = CosineHeads.load(heads)
        size = options["vision_cfg"].get("image_size", 224)
        self.image_size = int(size[0] if isinstance(size, list | tuple) else size)
        preprocess = options.get("preprocess_cfg", {})
        self.register_buffer("mean", tensor(preprocess.get("mean", OPENAI_DATASET_MEAN))[:, None, None], False)
        self.register_buffer("std", tensor(preprocess.get("std", OPENAI_DATASET_STD))[:, None, None], False)
        self.freeze()

    def checkpoint_gradients(self) -> None:
        self.encoder.set_grad_checkpointing(True)

    def prepare(self, inputs: UInt8[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        if inputs.shape[-2:] != (self.image_size, self.image_size):
            raise MergeError(
                f"images of {' × '.join(map(str, inputs.shape[-2:]))} for a network that takes squares of "
                f"{self.image_size}: set the data's image_size"
            )
        images = inputs if inputs.ndim == 4 else inputs[:, None].expand(-1, 3, -1, -1)
        return (images.float() / 255 - self.mean) / self.std


def read_config(config: str) -> dict[str, Any]:
    """An open_clip configuration by file or by name."""
    path = resolve(config)
    if path.suffix == ".json" or path.exists():
        return _read_json(path)
    found = get_model_config(config)
    if found is None:
        near = get_close_matches(config, list_models(), n=1, cutoff=0)
        raise MergeError(f"no open_clip model {config!r}; the nearest is {near[0]}; or give the path of a .json file")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MergeError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise MergeError(f"{path} is no JSON file: {error}") from error
    if not isinstance(found, dict):
        raise MergeError(f"{path} is no open_clip configuration: expected embed_dim and vision_cfg")
    # open_clip's hub files nest the model's part.
    return found.get("model_cfg", found) | {k: v for k, v in found.items() if k == "preprocess_cfg"}
