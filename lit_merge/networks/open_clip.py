"""Image towers of open_clip."""

from typing import Any, cast

from open_clip.model import _build_vision_tower

from lit_merge.errors import MergeError
from lit_merge.networks.base import without_weights
from lit_merge.networks.clip_images import ClipImages
from lit_merge.networks.open_clip_config import read_config
from lit_merge.networks.released_heads import ReleasedHeads
from lit_merge.networks.zero_shot import ZeroShotHeads


class OpenClipImageEncoder(ClipImages):
    """The image tower of an open_clip model with frozen heads on it. Images are uint8, (B, H, W) or (B, 3, H, W).

    Args:
        config: name of an open_clip model (`ViT-B-32`), or path of its JSON configuration, or of Hugging Face's.
        heads: path of a file {task: (classes, width)}, or {task.weight, task.bias} for linear ones, or of a folder of
            `head_{task}.pt`; or how to make heads from the names of the classes, or which released files they are.

    Raises:
        MergeError: an unknown name, a file that is missing or no such configuration, heads that cannot be read or made.
    """

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
        preprocess = options.get("preprocess_cfg", {})
        size = options["vision_cfg"].get("image_size", 224)
        self.take(size, preprocess.get("mean"), preprocess.get("std"), heads, config)

    def checkpoint_gradients(self) -> None:
        cast(Any, self.encoder).set_grad_checkpointing(True)
