"""Image towers of Hugging Face's CLIP."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lit_merge.errors import MergeError
from lit_merge.networks.clip_images import ClipImages
from lit_merge.networks.hugging_face_config import read_folder, vision_options
from lit_merge.networks.released_heads import ReleasedHeads
from lit_merge.networks.zero_shot import ZeroShotHeads


class HuggingFaceImageEncoder(ClipImages):
    """transformers' CLIPVisionModelWithProjection with frozen heads on it. Images are uint8, (B, H, W) or (B, 3, H, W).

    Mean and deviation of pixels are those of `preprocessor_config.json`, where it lies beside the configuration, and
    CLIP's otherwise.

    Args:
        config: a folder with `config.json`, that file itself, or the name of a model (`openai/clip-vit-base-patch32`)
            that Hugging Face's cache has.
        heads: path of a safetensors file {task: (classes, width)}, or how to make heads from the names of the classes.

    Raises:
        MergeError: transformers is not installed; no such configuration, or not CLIP's; heads that cannot be read or
            made.
    """

    def __init__(self, config: str, heads: str | ZeroShotHeads | ReleasedHeads) -> None:
        super().__init__()
        options, preprocessing = read_folder(config)
        vision = vision_options(options, config)
        self.encoder = _tower(vision, config)
        mean, std = preprocessing.get("image_mean"), preprocessing.get("image_std")
        self.take(vision["image_size"], mean, std, heads, config)

    def encode(self, inputs: UInt8[Tensor, "B ..."]) -> Float[Tensor, "B d"]:
        found: Tensor = self.encoder(pixel_values=self.prepared(inputs)).image_embeds
        return found

    def checkpoint_gradients(self) -> None:
        encoder: Any = self.encoder
        # By its newer name first: warnings come with the older one.
        name = "activation_checkpointing_enable"
        getattr(encoder, name if hasattr(encoder, name) else "gradient_checkpointing_enable")({"use_reentrant": False})
        for module in encoder.modules():
            # transformers asks each block whether it is in training; what is in it must not be, for dropout's sake.
            if getattr(module, "gradient_checkpointing", False):
                module.training = True


def _tower(vision: dict[str, Any], label: str) -> nn.Module:
    """The tower, without memory for weights."""
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ModuleNotFoundError as error:
        raise MergeError("Hugging Face models need transformers: pip install 'lit_merge[hf]'") from error
    try:
        with torch.device("meta"):
            made: nn.Module = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision))
    except Exception as error:  # transformers fails in as many ways as configurations are broken
        raise MergeError(f"{label} is no configuration of a CLIP: {error}") from error
    # Counted rather than learnt: no file has them.
    embeddings: Any = made.get_submodule("vision_model.embeddings")
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    return made
