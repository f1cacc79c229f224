"""Image files: how they are found and decoded, and which files are none."""

import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from torch import Tensor

from lit_merge.checkpoints.inputs import lists
from lit_merge.checkpoints.locations import resolve
from lit_merge.console import track
from lit_merge.data.images.decoding import UnreadableImage, decode
from lit_merge.data.images.geometry import Geometry
from lit_merge.data.images.search import search
from lit_merge.data.streams import ImageSource
from lit_merge.errors import MergeError, MergeWarning

OnBadImage = Literal["refuse", "skip"]


@dataclass
class Side:
    """The squares that images become: their side in pixels, and how. Both are the network's, a side unless somebody has
    chosen one."""

    pixels: int
    chosen: bool = True
    geometry: Geometry = field(default_factory=Geometry)

    @classmethod
    def of(cls, image_size: int | None) -> "Side":
        """The one that was chosen, or else 224, which most CLIPs take.

        Raises:
            MergeError: below 1.
        """
        if image_size is not None and image_size < 1:
            raise MergeError(f"image_size={image_size}: expected the side of the images in pixels, at least 1")
        return cls(224, chosen=False) if image_size is None else cls(image_size)

    @property
    def identity(self) -> list[Any]:
        """What tells its squares from others', for JSON."""
        return [self.pixels] if self.geometry == Geometry() else [self.pixels, *astuple(self.geometry)]


class Pictures(ImageSource):
    """Images of any size, which become squares as the network's model makes them when read.

    Args:
        side: of the squares, in pixels.
    """

    def __init__(self, side: Side | int) -> None:
        self.side = side if isinstance(side, Side) else Side(side)

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """An image upright in eight bits of red, green and blue, at its full size.

        Raises:
            UnreadableImage: it cannot be decoded.
        """

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "B 3 H W"]:
        square = self.side.geometry.square
        return torch.stack([square(self.picture(i), self.side.pixels) for i in indices])

    def pixels(self, index: int) -> bytes:
        picture = self.picture(index)
        return repr(picture.size).encode() + picture.tobytes()


class ImageFiles(Pictures):
    """Image files, decoded when read: upright, RGB, squares of this side.

    A file's content says what it is, not its suffix. Of an animation it is the first frame.

    Args:
        paths: the files.
        side: of the squares, in pixels.
        root: the folder that `names` are relative to; without it there are none.
    """

    def __init__(self, paths: Sequence[Path], side: Side | int, root: Path | None = None) -> None:
        super().__init__(side)
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
        raise MergeError(
            f"{place}: expected one subfolder per class, found images next to them; images without labels go to "
            "--data.adapt alone, which predict reads too",
            task=task,
        )
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
