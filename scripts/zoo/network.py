"""The encoder (open_clip's vision tower) and its cosine heads."""

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

# open_clip's own way of writing down a model; `network.json` of every zoo.
NETWORK: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 32, "layers": 3, "width": 256, "head_width": 64, "patch_size": 8, "mlp_ratio": 2.0,
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3]},
}  # fmt: skip
LOGIT_SCALE = 16.0


def encoder() -> VisionTransformer:
    """A fresh vision tower: (B, 3, 32, 32) to (B, 128)."""
    vision = NETWORK["vision_cfg"]
    return VisionTransformer(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=vision["width"],
        layers=vision["layers"],
        heads=vision["width"] // vision["head_width"],
        mlp_ratio=vision["mlp_ratio"],
        output_dim=NETWORK["embed_dim"],
    )


def pixels(images: Tensor) -> Tensor:
    """uint8 (B, 32, 32) to what the encoder takes, float (B, 3, 32, 32)."""
    preprocess = NETWORK["preprocess_cfg"]
    return ((images.float() / 255 - preprocess["mean"][0]) / preprocess["std"][0])[:, None].expand(-1, 3, -1, -1)


def logits(features: Tensor, head: Tensor) -> Tensor:
    """Scaled cosines (B, C) of features (B, D) with a head's unit rows (C, D), in float32 whatever the precision."""
    with torch.autocast(features.device.type, enabled=False):
        return LOGIT_SCALE * F.normalize(features.float(), dim=-1) @ head.float().T


@torch.no_grad()
def accuracy(network: nn.Module, head: Tensor, images: Tensor, labels: Tensor) -> float:
    """The share of images uint8 (N, 32, 32) that the network, in evaluation mode meanwhile, gets right."""
    training, device = network.training, next(network.parameters()).device
    network.eval()
    with torch.autocast(device.type, enabled=False):
        guesses = [logits(network(pixels(part.to(device))), head.to(device)).argmax(1) for part in images.split(500)]
    network.train(training)
    return torch.cat(guesses).cpu().eq(labels).float().mean().item()
