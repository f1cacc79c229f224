"""Small CLIPs of open_clip and of transformers with the same weights, and files as people bring them."""

from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

# Patch, width, heads and image size; heads are as many as in the real ones, and a token is as wide as it can be small.
SHAPES = {"B-32": (32, 48, 12, 224), "B-16": (16, 48, 12, 224), "L-14": (14, 64, 16, 224), "tiny": (8, 32, 2, 16)}
EMBED, LAYERS, MLP = 24, 2, 2
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}


def open_clip_config(shape: str, quick_gelu: bool = False) -> dict[str, Any]:
    patch, width, heads, image_size = SHAPES[shape]
    vision = {"image_size": image_size, "layers": LAYERS, "width": width, "patch_size": patch, "mlp_ratio": MLP}
    return {
        "embed_dim": EMBED,
        "quick_gelu": quick_gelu,
        "vision_cfg": vision | {"head_width": width // heads},
        "text_cfg": dict(TEXT) | {"mlp_ratio": MLP},
    }


def hugging_face_config(shape: str, quick_gelu: bool = False) -> dict[str, Any]:
    patch, width, heads, image_size = SHAPES[shape]
    act = {"hidden_act": "quick_gelu" if quick_gelu else "gelu"}
    vision = {"hidden_size": width, "intermediate_size": MLP * width, "num_hidden_layers": LAYERS}
    vision |= {"num_attention_heads": heads, "image_size": image_size, "patch_size": patch, "projection_dim": EMBED}
    text = {"hidden_size": 32, "intermediate_size": MLP * 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    # Token 2 as the end of texts is how transformers marks OpenAI's own models, whose end is the highest token.
    text |= {"max_position_embeddings": 8, "vocab_size": 50, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    return {
        "model_type": "clip",
        "projection_dim": EMBED,
        "vision_config": vision | act | {"model_type": "clip_vision_model"},
        "text_config": text | act | {"projection_dim": EMBED},
    }


def open_clip_model(shape: str, quick_gelu: bool = False) -> open_clip.CLIP:
    return shaken(open_clip.CLIP(**open_clip_config(shape, quick_gelu)).eval())


def hugging_face_model(shape: str, quick_gelu: bool = False) -> CLIPModel:
    return shaken(CLIPModel(CLIPConfig(**hugging_face_config(shape, quick_gelu))).eval())


def hugging_face_tower(shape: str, projection: bool = True, quick_gelu: bool = False) -> nn.Module:
    config = CLIPVisionConfig(**hugging_face_config(shape, quick_gelu)["vision_config"])
    return shaken((CLIPVisionModelWithProjection if projection else CLIPVisionModel)(config).eval())


def shaken(model: Any) -> Any:
    """Norms and biases that are no ones and zeros, so that none can be taken for another."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(weights: dict[str, Tensor], seed: int, scale: float = 0.03) -> dict[str, Tensor]:
    """An expert: the same names, every weight a little elsewhere; positions stay."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + scale * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in weights.items()
    }


def pixels(shape: str, images: int = 2) -> Tensor:
    return torch.randn(images, 3, SHAPES[shape][3], SHAPES[shape][3])
