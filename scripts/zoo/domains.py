"""Visual domains: effects that turn masters (B, 48, 48) uint8 into images (B, 32, 32) uint8, a batch at a time.

Effects that keep information (rotation, shear, squash, swirl, wave, perspective) are hard for the base and easy for
an expert; lossy ones (blur, noise, mosaic, outline) also cap the expert.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIDE = 32
# Effect: the strength that the base sees at most while it is pretrained.
MILD = {
    "rotate": 18.0, "shear": 0.3, "squash": 0.25, "small": 0.25, "swirl": 0.6, "wave": 0.06, "persp": 0.2,
    "outline": 0.4, "ghost": 0.35, "clutter": 0.4, "stripes": 0.25, "texture": 0.25, "light": 0.4, "fade": 0.4,
    "blur": 0.9, "noise": 0.12, "mosaic": 0.4, "cut": 0.35,
}  # fmt: skip
SHARES = frozenset({"outline", "ghost", "clutter", "stripes", "cut", "fade", "mosaic"})
_SIGNED = frozenset({"rotate", "shear", "squash", "swirl", "wave", "persp"})
_MILD_CHANCE = 0.09


def mild(batch: int, generator: Generator) -> dict[str, Tensor]:
    """Random mild strengths (B,) of every effect: one or two effects an image on average."""
    strengths = {}
    for effect, most in MILD.items():
        on = (torch.rand(batch, generator=generator) < _MILD_CHANCE).float()
        strength = torch.rand(batch, generator=generator) * most * on
        if effect in _SIGNED:
            strength = strength * (torch.randint(0, 2, (batch,), generator=generator) * 2 - 1)
        strengths[effect] = strength
    return strengths


def images(
    masters: Tensor,
    strengths: Mapping[str, Tensor | float],
    generator: Generator,
    background: str = "any",
    jitter: float = 1.0,
) -> Tensor:
    """Images uint8 (B, 32, 32) of masters uint8 (B, 48, 48): strengths (B,) or numbers, on a background that is
    `dark`, `light` or `any`; `jitter` scales the small random changes that every image undergoes."""
    draw = _Draw(len(masters), generator)
    effects = {
        name: torch.as_tensor(strengths.get(name, 0.0), dtype=torch.float32).expand(len(masters)) for name in MILD
    }
    glyphs = _stroke(masters.float().div(255)[:, None], effects, draw, jitter)
    picture = _cover(_warp(glyphs, effects, draw, jitter), effects, draw)
    picture = _light(_levels(picture, effects, draw, background), effects, draw)
    picture = picture + _wide(effects["noise"] + 0.02) * torch.randn(picture.shape, generator=generator)
    return (picture.clamp(0, 1) * 255).round().byte()[:, 0]


class _Draw:
    """Random numbers, one an image."""

    def __init__(self, batch: int, generator: Generator) -> None:
        self.batch, self.generator = batch, generator

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform numbers (B,)."""
        return torch.rand(self.batch, generator=self.generator) * (high - low) + low

    def order(self) -> Tensor:
        """A permutation (B,)."""
        return torch.randperm(self.batch, generator=self.generator)


def _wide(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _grid() -> tuple[Tensor, Tensor]:
    """Pixel centres: y and x (32, 32) in -1..1."""
    line = torch.linspace(-1 + 1 / SIDE, 1 - 1 / SIDE, SIDE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def _stroke(glyphs: Tensor, effects: dict[str, Tensor], draw: _Draw, jitter: float) -> Tensor:
    """Thicker strokes at random, and outlines; (B, 1, 48, 48)."""
    thick = _wide((draw() < 0.3 * jitter).float())
    glyphs = thick * F.max_pool2d(glyphs, 3, 1, 1) + (1 - thick) * glyphs
    if effects["outline"].any():
        line = (F.max_pool2d(glyphs, 3, 1, 1) + F.max_pool2d(-glyphs, 3, 1, 1)).clamp(0, 1)
        glyphs = torch.lerp(glyphs, line, _wide(effects["outline"]))
    return glyphs


def _warp(glyphs: Tensor, effects: dict[str, Tensor], draw: _Draw, jitter: float) -> Tensor:
    """Geometry, and neighbours at both sides (clutter); (B, 1, 48, 48) to (B, 1, 32, 32)."""
    u, v = _coordinates(effects, draw, jitter)

    def sample(source: Tensor, aside: float = 0.0) -> Tensor:
        return F.grid_sample(source, torch.stack([u + aside, v], -1), align_corners=False, padding_mode="zeros")

    picture = sample(glyphs)
    if effects["clutter"].any():
        left, right = draw.order(), draw.order()
        beside = torch.maximum(sample(glyphs[left], 1.45), sample(glyphs[right], -1.45))
        picture = torch.maximum(picture, _wide(effects["clutter"]) * beside)
    return picture


def _coordinates(effects: dict[str, Tensor], draw: _Draw, jitter: float) -> tuple[Tensor, Tensor]:
    """Where in the master each pixel looks: u (across) and v (down), (B, 32, 32)."""
    tall = {name: effects[name][:, None, None] for name in ("swirl", "wave", "persp")}
    angle = ((draw(-10, 10) * jitter + effects["rotate"]) * math.pi / 180)[:, None, None]
    size = ((1 + draw(-0.12, 0.12) * jitter) * (1 - effects["small"]) / 1.02)[:, None, None]
    shear = (draw(-0.12, 0.12) * jitter + effects["shear"])[:, None, None]
    aspect = torch.exp(draw(-0.08, 0.08) * jitter + effects["squash"]).sqrt()[:, None, None]
    right, down = (draw(-0.08, 0.08)[:, None, None] * jitter for _ in range(2))
    y, x = _grid()
    u, v = x[None] - right, y[None] - down
    turn = tall["swirl"] * (1 - (u**2 + v**2).sqrt() / 1.1).clamp(min=0) - angle
    u, v = u * turn.cos() - v * turn.sin(), u * turn.sin() + v * turn.cos()
    u = u + tall["wave"] * torch.sin(v * 7 + draw(0, 0.8)[:, None, None])
    u = u / (1 + tall["persp"] * v).clamp(min=0.2) + shear * v
    return u / size / aspect, v / size * aspect


def _cover(picture: Tensor, effects: dict[str, Tensor], draw: _Draw) -> Tensor:
    """Ghosts, mosaic, bars and stripes; (B, 1, 32, 32)."""
    if effects["ghost"].any():
        picture = torch.maximum(picture, _wide(effects["ghost"]) * torch.roll(picture, (5, 4), (2, 3)))
    if effects["mosaic"].any():
        coarse = F.interpolate(F.interpolate(picture, size=(11, 11), mode="area"), size=(SIDE, SIDE), mode="nearest")
        picture = torch.lerp(picture, coarse, _wide(effects["mosaic"]))
    if effects["cut"].any():
        phase = torch.randint(0, 6, (draw.batch,), generator=draw.generator)
        bar = ((torch.arange(SIDE)[None] + phase[:, None]) % 6 < 2).float()[:, None, None, :]
        picture = picture * (1 - _wide(effects["cut"]) * bar)
    if effects["stripes"].any():
        y, x = _grid()
        stripe = (((x + y)[None] * 16 + draw(0, 16)[:, None, None]) % 16 < 8).float()[:, None]
        stripe = stripe * _wide(effects["stripes"])
        picture = picture * (1 - stripe) + (1 - picture) * stripe
    return picture


def _levels(picture: Tensor, effects: dict[str, Tensor], draw: _Draw, background: str) -> Tensor:
    """Random grey levels of ground and glyph, brought together by fading; (B, 1, 32, 32)."""
    low, high = draw(0, 0.25), draw(0.75, 1)
    if background == "any":
        flip = draw() < 0.5
        low, high = torch.where(flip, high, low), torch.where(flip, low, high)
    elif background == "light":
        low, high = high, low
    middle = (low + high) / 2
    low, high = torch.lerp(low, middle, effects["fade"] * 0.9), torch.lerp(high, middle, effects["fade"] * 0.9)
    return _wide(low) + _wide(high - low) * picture


def _light(picture: Tensor, effects: dict[str, Tensor], draw: _Draw) -> Tensor:
    """Texture, uneven light and blur; (B, 1, 32, 32)."""
    if effects["texture"].any():
        bumps = torch.randn(draw.batch, 1, 9, 9, generator=draw.generator)
        bumps = F.interpolate(bumps, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
        picture = picture + _wide(effects["texture"]) * 0.5 * bumps
    if effects["light"].any():
        y, x = _grid()
        angle = _wide(draw(0, 2 * math.pi))
        picture = picture + _wide(effects["light"]) * 0.5 * (x[None, None] * angle.cos() + y[None, None] * angle.sin())
    if effects["blur"].any():
        picture = torch.where(_wide(effects["blur"]) > 0.1, _blurred(picture, effects["blur"]), picture)
    return picture


def _blurred(picture: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian blur, sigma (B,) in pixels, each image its own; (B, 1, 32, 32)."""
    sigma = sigma.clamp(min=0.05)
    kernel = torch.exp(-(torch.arange(-4, 5)[None] ** 2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    across = F.pad(picture, (4, 4, 0, 0), mode="replicate").transpose(0, 1)
    across = F.conv2d(across, kernel[:, None, None, :], groups=len(sigma))
    down = F.pad(across, (0, 0, 4, 4), mode="replicate")
    return F.conv2d(down, kernel[:, None, :, None], groups=len(sigma)).transpose(0, 1)
