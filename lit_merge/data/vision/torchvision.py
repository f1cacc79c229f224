"""What torchvision reads of the vision tasks, as pictures that go through our own decoder where they are files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lit_merge.data.images.decoding import to_rgb
from lit_merge.data.images.files import ImageFiles, Pictures, Side
from lit_merge.data.images.splits import Split
from lit_merge.data.vision.layouts import Layout
from lit_merge.errors import MergeError, first_line


class ItemPictures(Pictures):
    """Images of one size: arrays (N, H, W) or (N, H, W, 3) of uint8, or what a torchvision data set reads one at a
    time."""

    def __init__(self, items: Any, side: Side, where: str) -> None:
        super().__init__(side)
        self.items, self.where = items, where

    def __len__(self) -> int:
        return len(self.items)

    def picture(self, index: int) -> Image.Image:
        item = self.items[index]
        return to_rgb(item[0] if isinstance(item, tuple) else Image.fromarray(np.ascontiguousarray(item)))

    def label(self, index: int) -> str:
        return f"{self.where}, image {index}"

    def content(self, index: int) -> bytes:
        return self.items[index].tobytes() if isinstance(self.items, np.ndarray) else self.pixels(index)

    def lengths(self) -> list[int]:
        return [len(self.content(0))] * len(self) if len(self) else []


Take = Callable[[Any, Path, Side, str], tuple[Pictures, Sequence[int]]]
"""A torchvision data set, the root, the side of squares and what messages call it → images and labels."""


def files(dataset: Any, root: Path, side: Side, where: str) -> tuple[Pictures, Sequence[int]]:
    """The images of a data set whose loader was `Path`: items are paths, so nothing is decoded to learn the labels."""
    items = [dataset[i] for i in range(len(dataset))]
    return ImageFiles([path for path, _ in items], side, root), [int(label) for _, label in items]


def signs(dataset: Any, root: Path, side: Side, where: str) -> tuple[Pictures, Sequence[int]]:
    """The images of GTSRB, which takes no loader."""
    return ImageFiles([Path(path) for path, _ in dataset._samples], side, root), [y for _, y in dataset._samples]


def pets(dataset: Any, root: Path, side: Side, where: str) -> tuple[Pictures, Sequence[int]]:
    """The images of OxfordIIITPet, which takes no loader."""
    return ImageFiles(dataset._images, side, root), dataset._labels


def arrays(dataset: Any, root: Path, side: Side, where: str) -> tuple[Pictures, Sequence[int]]:
    """The images of a data set that holds all images in memory, channels last or first."""
    images = np.asarray(dataset.data)
    if images.ndim == 4 and images.shape[1] == 3:
        images = images.transpose(0, 2, 3, 1)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return ItemPictures(images, side, where), np.asarray(labels).tolist()


def faces(dataset: Any, root: Path, side: Side, where: str) -> tuple[Pictures, Sequence[int]]:
    """FER2013, a table of pixels."""
    items = [dataset[i] for i in range(len(dataset))]
    if any(label is None for _, label in items):
        raise MergeError(f"{root}/fer2013: test.csv has no labels: take fer2013.csv or icml_face_data.csv")
    images = np.stack([np.asarray(image) for image, _ in items])
    return ItemPictures(images, side, where), [label for _, label in items]


def patches(dataset: Any, root: Path, side: Side, where: str) -> tuple[Pictures, Sequence[int]]:
    """PCAM: seven gigabytes, read image by image; labels are small."""
    path = dataset._base_folder / dataset._FILES[dataset._split]["targets"][0]
    with dataset.h5py.File(path) as targets:
        labels = np.asarray(targets["y"]).reshape(-1)
    return ItemPictures(dataset, side, where), labels.tolist()


@dataclass(frozen=True)
class Torchvision(Layout):
    """What a class of `torchvision.datasets` reads.

    Args:
        dataset: the class.
        folder: what it looks for below its root.
        arguments: our splits → its arguments.
        take: how images and labels are taken from it.
        downloads: whether it can fetch its files.
        home: a subfolder in which the task-arithmetic code has its root.
    """

    dataset: str
    folder: str
    arguments: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"train": {"split": "train"}, "test": {"split": "test"}}
    )
    take: Take = files
    downloads: bool = True
    home: str = ""

    @property
    def looked_for(self) -> str:
        return self.folder

    def splits(self, root: Path) -> tuple[str, ...]:
        return tuple(self.arguments) if (self._root(root) / self.folder).exists() else ()

    def read(self, task: str, root: Path, split: str, side: Side) -> Split:
        place = self._root(root)
        dataset = self._open(task, place, split, False)
        pictures, labels = self.take(dataset, place, side, f"{place / self.folder}, split {split}")
        names = getattr(dataset, "classes", None)
        return Split(pictures, torch.tensor(labels, dtype=torch.long), tuple(names) if names else None)

    def download(self, task: str, root: Path) -> None:
        """Fetches the task's files into the root."""
        for split in self.arguments:
            self._open(task, root, split, True)

    def _root(self, root: Path) -> Path:
        inner = root / self.home if self.home else root
        return inner if (inner / self.folder).exists() else root

    def _open(self, task: str, root: Path, split: str, download: bool) -> Any:
        from torchvision import datasets

        options = dict(self.arguments[split])
        if self.take is files:
            options["loader"] = Path
        if self.downloads:
            options["download"] = download
        try:
            return getattr(datasets, self.dataset)(str(root), **options)
        except Exception as error:  # it fails in as many ways as files are broken
            message = first_line(error)
            if "scipy" in message.lower() or "h5py" in message.lower():
                message = f"{message}: pip install 'lit_merge[vision]'"
            raise MergeError(
                f"task {task}: torchvision's {self.dataset} cannot read its {split} split in {root / self.folder}: "
                f"{message}",
                task=task,
            ) from error
