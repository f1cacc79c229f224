"""Corruptions of images: what a deployment's camera does to them, as pure functions, at five severities.

Kinds are of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261), and so are the strengths of noise, contrast and
brightness; blur and pixelate grow with the image. Every image is treated by itself, with a generator seeded by its
name: which batch it comes in, and how often, changes no pixel.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from lit_merge.data.streams import ImageSource
from lit_merge.errors import MergeError

Kind = Literal["noise", "blur", "contrast", "brightness", "pixelate"]


def noise(image: Float[Tensor, "C H W"], deviation: float, generator: torch.Generator) -> Float[Tensor, "C H W"]:
    """Adds Gaussian noise of this standard deviation; white is 1."""
    return image + deviation * torch.randn(image.shape, generator=generator)


def blur(image: Float[Tensor, "C H W"], share: float, generator: torch.Generator) -> Float[Tensor, "C H W"]:
    """Gaussian blur, whose standard deviation is this share of the shorter side."""
    deviation = share * min(image.shape[1:])
    radius = max(1, round(3 * deviation))
    steps = torch.arange(-radius, radius + 1)
    kernel = (-(steps**2) / (2 * deviation**2)).softmax(0)
    padded = F.pad(image[:, None], [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]


def contrast(image: Float[Tensor, "C H W"], share: float, generator: torch.Generator) -> Float[Tensor, "C H W"]:
    """Leaves this share of every pixel's distance from the channel's mean."""
    mean = image.mean((1, 2), keepdim=True)
    return mean + share * (image - mean)


def brightness(image: Float[Tensor, "C H W"], shift: float, generator: torch.Generator) -> Float[Tensor, "C H W"]:
    """Adds this to every pixel; white is 1."""
    return image + shift


def pixelate(image: Float[Tensor, "C H W"], share: float, generator: torch.Generator) -> Float[Tensor, "C H W"]:
    """Averages over squares, whose side is this share of the shorter side."""
    height, width = image.shape[1:]
    side = max(2, round(share * min(height, width)))
    squares = F.avg_pool2d(image, side, ceil_mode=True, count_include_pad=False)
    return squares.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]


# kind → function, and what it takes at severities 1 to 5.
LEVELS: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "noise": (noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": (blur, (0.0125, 0.02, 0.03, 0.04, 0.06)),
    "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "pixelate": (pixelate, (0.06, 0.09, 0.12, 0.15, 0.18)),
}


@dataclass(frozen=True)
class Corruption:
    """One kind at one severity.

    Args:
        kind: noise (Gaussian), blur (Gaussian), contrast, brightness or pixelate.
        severity: 1 to 5.
        seed: of the noise.

    Raises:
        MergeError: another kind, or another severity.
    """

    kind: str
    severity: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in LEVELS:
            near = get_close_matches(self.kind, LEVELS, n=1, cutoff=0)[0]
            raise MergeError(f"corruption={self.kind!r}: the nearest is {near}; there are {', '.join(get_args(Kind))}")
        if self.severity not in range(1, 6):
            raise MergeError(f"severity={self.severity}: expected 1 to 5")

    def __call__(self, images: UInt8[Tensor, "B *C H W"], names: Sequence[str]) -> UInt8[Tensor, "B *C H W"]:
        """Corrupts images; `names` tell them apart, so that each has noise of its own."""
        function, levels = LEVELS[self.kind]
        corrupted = torch.empty_like(images)
        for i, (image, name) in enumerate(zip(images, names, strict=True)):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
            channels = image.reshape(-1, *image.shape[-2:]).float() / 255
            found = function(channels, levels[self.severity - 1], generator)
            corrupted[i] = (255 * found).round().clamp(0, 255).to(torch.uint8).reshape(image.shape)
        return corrupted


class CorruptedImages(ImageSource):
    """Images as a corruption leaves them, made when read.

    Args:
        source: the images.
        corruption: what happens to them.
        name: tells these images from those of other tasks and splits.
    """

    def __init__(self, source: ImageSource, corruption: Corruption, name: str) -> None:
        self.source, self.corruption, self.name = source, corruption, name

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "B ..."]:
        return self.corruption(self.source.read(indices), [f"{self.name}/{i}" for i in indices])
