"""Image files: how they are found, decoded, and told from files that are none."""

import io
import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from lit_merge.data.streams import ImageSource
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.locations import resolve
from lit_merge.progress import track

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# Sides: what is longer is cropped to this before it is resized.
STRIP = 16


class Pictures(ImageSource):
    """Images of any size, which become squares as CLIP makes them when read.

    Args:
        image_size: side of the squares.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """An image upright in eight bits of red, green and blue, at its full size.

        Raises:
            UnreadableImage: it cannot be decoded.
        """

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "B 3 H W"]:
        return torch.stack([square(self.picture(i), self.image_size) for i in indices])

    def pixels(self, index: int) -> bytes:
        picture = self.picture(index)
        return repr(picture.size).encode() + picture.tobytes()


class ImageFiles(Pictures):
    """Image files, decoded when read: upright, shorter side resized to `image_size`, centre cropped, RGB.

    A file's content says what it is, not its suffix. Of an animation it is the first frame.

    Args:
        paths: the files.
        image_size: side of the squares.
        root: the folder from which `names` are told; without it there are none.
    """

    def __init__(self, paths: Sequence[Path], image_size: int, root: Path | None = None) -> None:
        super().__init__(image_size)
        self.paths = list(paths)
        self.root = root

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> Image.Image:
        return decode(self.paths[index])

    def label(self, index: int) -> str:
        return str(self.paths[index])

    def content(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def lengths(self) -> list[int]:
        return [path.stat().st_size if path.exists() else 0 for path in self.paths]

    def names(self, indices: Sequence[int]) -> list[str] | None:
        if self.root is None:
            return None
        paths = (self.paths[i].relative_to(self.root).as_posix() for i in indices)
        # Names that are no UTF-8 can be written nowhere as they are.
        return [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths]


def square(image: Image.Image, size: int) -> UInt8[Tensor, "3 H W"]:
    """CLIP's geometry: the shorter side resized to `size`, bicubic, and the centre cropped."""
    shorter = min(image.size)
    # Of a strip of one by a million only the middle is resized: all of it would fill the memory.
    image = _centre(image, min(image.width, STRIP * shorter), min(image.height, STRIP * shorter))
    wide, high = (int(size * side / shorter) for side in image.size)
    resized = _centre(image.resize((wide, high), Image.Resampling.BICUBIC), size, size)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


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
        UnreadableImage: no whole image, one of more pixels than Pillow takes for harmless, or of an unknown range.
    """
    label = label or str(source)
    try:
        with warnings.catch_warnings():
            # Only a warning up to twice the limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadableImage(
            f"{label} cannot be read as an image: it unpacks to more than {Image.MAX_IMAGE_PIXELS:,} pixels, as "
            "files do that are made to fill the memory: make it smaller or remove it"
        ) from error
    except Exception as error:  # Pillow's readers fail in as many ways as files are broken
        reason = str(error) or type(error).__name__
        raise UnreadableImage(f"{label} cannot be read as an image: {reason}: mend or remove it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits of red, green and blue from any mode; transparency is left out.

    Raises:
        ValueError: values whose range nobody knows: floating point, or integers above 16 bits.
    """
    if image.mode.startswith("I"):
        # 16 bits: `convert` would clip them at 255 rather than scale them.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its values are outside 0 to 65535, so black and white are not known")
        return Image.fromarray((values // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers, so black and white are not known")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def readable(task: str, pictures: Pictures) -> list[int]:
    """Places of the images that can be decoded, found by decoding all; one warning counts and names the others.

    Raises:
        MergeError: none can be.
    """
    good, bad = [], []
    for i in track(range(len(pictures)), f"checking images of {task}", len(pictures)):
        try:
            pictures.picture(i)
            good.append(i)
        except UnreadableImage:
            bad.append(i)
    if not good:
        first = pictures.label(bad[0])
        raise MergeError(f"none of the {len(bad)} images of task {task} can be read, the first is {first}", task=task)
    if bad:
        named = ", ".join(pictures.label(i) for i in bad[:3]) + (", …" if len(bad) > 3 else "")
        warnings.warn(
            f"{len(bad)} of {len(pictures)} images of task {task} cannot be read and are left out: {named}",
            MergeWarning,
            stacklevel=2,
        )
    return good


def class_names(root: Path) -> list[str]:
    """Sorted names of the subfolders. Those without images count too: a class keeps its row of the head."""
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def find_images(task: str, folder: str) -> list[Path]:
    """All image files below a folder, sorted."""
    root = resolve(folder)
    try:
        if not root.is_dir():
            raise MergeError(f"{root} (images of task {task}): no such folder", task=task)
        # Not rglob: it passes over subfolders that cannot be read, or that are links, without a word.
        found = (
            Path(place, name) for place, _, names in os.walk(root, onerror=_stop, followlinks=True) for name in names
        )
        paths = sorted(path for path in found if path.suffix.lower() in SUFFIXES and not _hidden(path, root))
    except OSError as error:
        place = error.filename or root
        raise MergeError(f"{place} (images of task {task}) cannot be read: {error.strerror}", task=task) from error
    if not paths:
        raise MergeError(f"{root} (images of task {task}) holds no image ({', '.join(sorted(SUFFIXES))})", task=task)
    return paths


def _stop(error: OSError) -> NoReturn:
    raise error


def _hidden(path: Path, root: Path) -> bool:
    """Thumbnails and other systems' notes about files, `._photo.png`, are no images of the task."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
