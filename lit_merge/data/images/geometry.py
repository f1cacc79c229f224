"""How pictures of any size become the squares that a network takes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

# Sides: what is longer is cropped to this before its shorter side is resized.
STRIP = 16
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Geometry:
    """What a model's preprocessing does with an image before its pixels are normalised, in open_clip's terms.

    Args:
        resize_mode: `shortest` resizes the shorter side and crops the centre, as CLIP does; `squash` resizes both
            sides, as SigLIP does; `longest` resizes the longer side, with black next to it.
        interpolation: of resizing.
    """

    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def square(self, image: Image.Image, size: int) -> UInt8[Tensor, "3 H W"]:
        """The image in RGB as a square of `size` pixels a side."""
        if self.resize_mode == "shortest":
            # Of a strip of one by a million only the middle is resized: all of it would fill the memory.
            most = STRIP * min(image.size)
            image = _centre(image, min(image.width, most), min(image.height, most))
            sides = [int(size * side / min(image.size)) for side in image.size]
        elif self.resize_mode == "longest":
            sides = [max(1, round(side / (max(image.size) / size))) for side in image.size]
        else:
            sides = [size, size]
        resized = _centre(image.resize((sides[0], sides[1]), FILTERS[self.interpolation]), size, size)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image; black where it has nothing."""
    left, top = _first(image.width, width), _first(image.height, height)
    return image.crop((left, top, left + width, top + height))


def _first(whole: int, part: int) -> int:
    """Where a part in the middle begins, in torchvision's rounding."""
    return -((part - whole) // 2) if whole < part else round((whole - part) / 2)
