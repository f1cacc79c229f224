"""Image towers of open_clip."""

from typing import Any, cast

from jaxtyping import Float, UInt8
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import _build_vision_tower
from torch import Tensor, tensor

from lit_merge.errors import MergeError
from lit_merge.networks.base import Network, without_weights
from lit_merge.networks.heads import CosineHeads, ReleasedHeads
from lit_merge.networks.open_clip_config import read_config
from lit_merge.networks.zero_shot import ZeroShotHeads


class OpenClipImageEncoder(Network):
    """The image tower of an open_clip model with frozen heads on it. Images are uint8, (B, H, W) or (B, 3, H, W).

    Args:
        config: name of an open_clip model (`ViT-B-32`), or path of its JSON configuration.
        heads: path of a safetensors file {task: (classes, width)}, or of a folder of `head_{task}.pt`; or how to make
            heads from the names of the classes, or which released files they are.

    Raises:
        MergeError: an unknown name, a file that is missing or no such configuration, heads that cannot be read or made.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: str, heads: str | ZeroShotHeads | ReleasedHeads) -> None:
        super().__init__()
        options = read_config(config)
        try:
            self.encoder = without_weights(
                lambda: _build_vision_tower(
                    options["embed_dim"], options["vision_cfg"], options.get("quick_gelu", False)
                )
            )
        except (KeyError, TypeError) as error:
            raise MergeError(f"{config} is no open_clip configuration: {error!r}") from error
        self.heads = CosineHeads.load(heads) if isinstance(heads, str) else heads.build(config)
        size = options["vision_cfg"].get("image_size", 224)
        self.image_size = int(size[0] if isinstance(size, list | tuple) else size)
        preprocess = options.get("preprocess_cfg", {})
        self.register_buffer("mean", tensor(preprocess.get("mean", OPENAI_DATASET_MEAN))[:, None, None], False)
        self.register_buffer("std", tensor(preprocess.get("std", OPENAI_DATASET_STD))[:, None, None], False)
        self.freeze()

    def checkpoint_gradients(self) -> None:
        cast(Any, self.encoder).set_grad_checkpointing(True)

    def prepare(self, inputs: UInt8[Tensor, "B ..."]) -> Float[Tensor, "B 3 H W"]:
        if inputs.shape[-2:] != (self.image_size, self.image_size):
            raise MergeError(
                f"images of {' × '.join(map(str, inputs.shape[-2:]))} for a network that takes squares of "
                f"{self.image_size}: set the data's image_size"
            )
        images = inputs if inputs.ndim == 4 else inputs[:, None].expand(-1, 3, -1, -1)
        return (images.float() / 255 - self.mean) / self.std
