"""Renders characters as masters: centred 48 x 48 grey images, white on black, longest side 34."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from zoo.fonts import FontFile

MASTER = 48
_LONGEST_SIDE = 34
_POINTS = 64
_LEAST_LEGIBLE = 0.45


def render_alphabet(
    fonts: Iterable[FontFile], unpacked: Path, alphabet: str
) -> tuple[list[FontFile], NDArray[np.uint8]]:
    """The fonts that draw every character, each differently, and unlike any font before; masters (F, C, 48, 48)."""
    kept: list[FontFile] = []
    masters: list[NDArray[np.uint8]] = []
    seen: set[bytes] = set()
    for font in fonts:
        glyphs = _render_all(unpacked / font.path, alphabet)
        if glyphs is None:
            continue
        digest = hashlib.sha256(glyphs.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(font)
            masters.append(glyphs)
    if not kept:
        return [], np.zeros((0, len(alphabet), MASTER, MASTER), np.uint8)
    stacked = np.stack(masters)
    chosen = np.flatnonzero(_legible(stacked))
    return [kept[i] for i in chosen], stacked[chosen]


def _render_all(path: Path, alphabet: str) -> NDArray[np.uint8] | None:
    """Masters (C, 48, 48) of one font, or nothing where a character is missing or two look the same."""
    try:
        font = ImageFont.truetype(path, _POINTS, layout_engine=ImageFont.Layout.BASIC)
        glyphs = [_render(font, character) for character in alphabet]
    except (OSError, ValueError):  # what FreeType says of a font that it cannot draw
        return None
    drawn = [glyph for glyph in glyphs if glyph is not None]
    if len({glyph.tobytes() for glyph in drawn}) < len(alphabet):
        return None
    return np.stack(drawn)


def _render(font: ImageFont.FreeTypeFont, character: str) -> NDArray[np.uint8] | None:
    """One master (48, 48), or nothing where the font draws nothing to speak of."""
    page = Image.new("L", (160, 160))
    ImageDraw.Draw(page).text((40, 40), character, font=font, fill=255)
    box = page.getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 2:
        return None
    glyph = page.crop(box)
    scale = _LONGEST_SIDE / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    master = Image.new("L", (MASTER, MASTER))
    master.paste(
        glyph.resize((width, height), Image.Resampling.LANCZOS), ((MASTER - width) // 2, (MASTER - height) // 2)
    )
    return np.asarray(master)


def _legible(masters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which fonts (F,) the mean of all others recognises: drops symbol fonts and the wildest display faces."""
    smooth = F.avg_pool2d(torch.tensor(masters).float(), 3, 1, 1)
    flat = F.avg_pool2d(smooth, 2).flatten(2)
    total, truth = flat.sum(0), torch.arange(flat.shape[1])
    kept = []
    for font in flat:
        others = F.normalize(total - font, dim=1)
        guess = (F.normalize(font, dim=1) @ others.T).argmax(1)
        kept.append(bool((guess == truth).float().mean() > _LEAST_LEGIBLE))
    return np.array(kept)
