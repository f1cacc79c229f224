"""Pictures from the bytes of image files, and which bytes are none."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lit_merge.checkpoints.input_file import InputFile
from lit_merge.errors import MergeError

# Bytes of an image file.
LARGEST = 1 << 31
# Tags of TIFF, and a value of the second.
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


class UnreadableImage(MergeError):
    """An image that cannot be decoded. Where a worker process of the DataLoader met it, torch writes the traceback
    there before the message; only what follows is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("UnreadableImage: ")[2])


def decode(source: Path | bytes, label: str | None = None) -> Image.Image:
    """The image of a file, upright, in eight bits of red, green and blue.

    Args:
        source: the file, or what stands in it.
        label: what messages call it; its path by default.

    Raises:
        UnreadableImage: no whole image, or a file that was changed while it was read; more pixels than Pillow takes for
            harmless; values of an unknown range.
    """
    label = label or str(source)
    try:
        content = source if isinstance(source, bytes) else InputFile(source, "an image").text("an image", LARGEST)
        with warnings.catch_warnings():
            # Only a warning up to twice the limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                # Before it is turned: what turns it forgets the file.
                levels = _levels(image) if image.mode.startswith("I") else None
                return to_rgb(ImageOps.exif_transpose(image), levels)
    except MergeError as error:
        raise UnreadableImage(str(error)) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadableImage(
            f"{label} cannot be read as an image: it unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels, as "
            "files do that are made to fill the memory: make it smaller or remove it"
        ) from error
    except Exception as error:  # Pillow's readers fail in as many ways as files are broken
        reason = str(error) or type(error).__name__
        raise UnreadableImage(f"{label} cannot be read as an image: {reason}: mend or remove it") from error


def to_rgb(image: Image.Image, levels: tuple[int, int] | None = (0, 0xFFFF)) -> Image.Image:
    """Eight bits of red, green and blue from any mode; transparency is left out.

    Args:
        image: of any mode.
        levels: what black and white are in an image of more than eight bits; None where nobody knows.

    Raises:
        ValueError: values whose range nobody knows: floating point, or integers above 16 bits.
    """
    if image.mode.startswith("I"):
        # `convert` would clip them at 255 rather than scale them.
        values = np.asarray(image).astype(np.int64)
        if levels is None or values.min() < min(levels) or values.max() > max(levels):
            text = "integers of a range that it does not say" if levels is None else f"outside 0 to {max(levels)}"
            raise ValueError(f"its values are {text}, so black and white are not known")
        scaled = values * 256 // (max(levels) + 1)
        return Image.fromarray((scaled if levels[0] < levels[1] else 255 - scaled).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers, so black and white are not known")
    if "transparency" in image.info or image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def _levels(file: Image.Image) -> tuple[int, int] | None:
    """Black and white of a file with more than eight bits of grey."""
    if file.format != "TIFF":
        # What these hold Pillow brings to 16 bits.
        return (0, 0xFFFF) if file.format in ("PNG", "PPM", "JPEG2000") else None
    tags: Any = file.tag_v2  # type: ignore[attr-defined]
    if not file.mode.startswith("I;"):
        return None
    white = (1 << tags[BITS_PER_SAMPLE][0]) - 1
    return (white, 0) if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else (0, white)
