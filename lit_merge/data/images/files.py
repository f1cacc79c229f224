"""Image files: how they are found and decoded, and which files are none."""

import io
import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from lit_merge.checkpoints.inputs import lists
from lit_merge.checkpoints.locations import resolve
from lit_merge.console import track
from lit_merge.data.images.search import search
from lit_merge.data.streams import ImageSource
from lit_merge.errors import MergeError, MergeWarning

# Sides: what is longer is cropped to this before it is resized.
STRIP = 16
# Tags of TIFF, and a value of the second.
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


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
        root: the folder that `names` are relative to; without it there are none.
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
                # Before it is turned: what turns it forgets the file.
                levels = _levels(image) if image.mode.startswith("I") else None
                return to_rgb(ImageOps.exif_transpose(image), levels)
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
    """Sorted names of the subfolders. Those without images count too: a class keeps its row of the head. A link to a
    folder above it is none."""
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        raise MergeError(f"{root} (folders of classes) cannot be read: {error.strerror}") from error
    return sorted(path.name for path in folders if not root.resolve().is_relative_to(path.resolve()))


def by_class(task: str, root: Path, paths: Sequence[Path]) -> tuple[Integer[Tensor, " N"], list[str]]:
    """The class of every image below a folder of class folders, from 0, and the names of the classes.

    Raises:
        MergeError: an image next to the folders of classes.
    """
    names = class_names(root)
    stray = next((path for path in paths if path.parent == root), None)
    if stray is not None:
        place = f"{stray} (task {task})"
        raise MergeError(f"{place}: expected one subfolder per class, found images next to them", task=task)
    return torch.tensor([names.index(path.relative_to(root).parts[0]) for path in paths]), names


def find_images(task: str, folder: str) -> list[Path]:
    """All image files below a folder, sorted, each of them once; a warning counts what may be an image and is left out.

    Raises:
        MergeError: no such folder, one that cannot be read, or that holds no image.
    """
    root = lists(resolve(folder))
    try:
        if not root.is_dir():
            raise MergeError(f"{root} (images of task {task}): no such folder", task=task)
        found = search(root)
    except OSError as error:
        place = error.filename or root
        raise MergeError(f"{place} (images of task {task}) cannot be read: {error.strerror}", task=task) from error
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.left_out.most_common())
    where = f"{root} (images of task {task})"
    if not found.images:
        text = f" that Pillow reads, only others ({kinds})" if kinds else ""
        advice = "save them as PNG or JPEG" if kinds else "expected files as .png, .jpg, .webp, .tif or .ppm"
        raise MergeError(f"{where} holds no image{text}: {advice}", task=task)
    if kinds:
        text = (
            f"{found.left_out.total()} files next to {len(found.images)} images are left out, though they may be images"
        )
        warnings.warn(
            f"{where}: {text} too: {kinds}: save them as PNG or JPEG, or remove them", MergeWarning, stacklevel=1
        )
    if found.again:
        text = f"{found.again} links lead to images or folders that are there already: each counts once"
        warnings.warn(f"{where}: {text}", MergeWarning, stacklevel=1)
    return found.images
