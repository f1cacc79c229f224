"""Layouts: how the vision tasks of the literature lie on a disk, and what reads each of them."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_merge.checkpoints.input_file import InputFile
from lit_merge.data.images.files import ImageFiles, Side, by_class, class_names, find_images
from lit_merge.data.images.splits import Split
from lit_merge.errors import MergeError


class Layout(ABC):
    """Files of one task below a folder with those of all."""

    @property
    @abstractmethod
    def looked_for(self) -> str:
        """What has to be there, from the root."""

    @abstractmethod
    def splits(self, root: Path) -> tuple[str, ...]:
        """Which of train, validation and test are there; none where the task is not."""

    @abstractmethod
    def read(self, task: str, root: Path, split: str, side: Side) -> Split:
        """One of these splits.

        Raises:
            MergeError: files that are missing, damaged or not what they should be.
        """


@dataclass(frozen=True)
class ClassFolders(Layout):
    """`folder/train/class/image.jpg`, and so for test and val."""

    folder: str

    @property
    def looked_for(self) -> str:
        return f"{self.folder}/train"

    def splits(self, root: Path) -> tuple[str, ...]:
        names = {"train": "train", "validation": "val", "test": "test"}
        return tuple(split for split, name in names.items() if (root / self.folder / name).is_dir())

    def read(self, task: str, root: Path, split: str, side: Side) -> Split:
        place = root / self.folder / {"validation": "val"}.get(split, split)
        paths = find_images(task, str(place))
        labels, names = by_class(task, place, paths)
        return Split(ImageFiles(paths, side, place), labels, tuple(names))


@dataclass(frozen=True)
class Listed(Layout):
    """Images in class folders, and text files that name those of every split.

    Args:
        folder: of the images.
        lists: our splits → text file.
        by_name: whether lines are names of files, which are in the folder of the class that they begin with, as
            `airport_001.jpg`; else paths from the folder.
        classes: text file with the names of the classes in the order of the labels; else the sorted folders.
    """

    folder: str
    lists: Mapping[str, str]
    by_name: bool = False
    classes: str | None = None

    @property
    def looked_for(self) -> str:
        return self.lists["train"]

    def splits(self, root: Path) -> tuple[str, ...]:
        return tuple(split for split, name in self.lists.items() if (root / name).is_file())

    def read(self, task: str, root: Path, split: str, side: Side) -> Split:
        place = root / self.folder
        try:
            lines = _words(root / self.lists[split])
            names = class_names(place) if self.classes is None else _words(root / self.classes)
        except (OSError, ValueError) as error:
            raise MergeError(f"task {task}: {error}", task=task) from error
        if self.by_name:
            lines = [f"{re.sub(r'_[0-9]+[.][A-Za-z0-9]+$', '', line)}/{line}" for line in lines]
        rows = {name.strip("/"): row for row, name in enumerate(names)}
        within = [line.strip("/") for line in lines]
        classes = [line.rpartition("/")[0] for line in within]
        if unknown := next((line for line, name in zip(within, classes, strict=True) if name not in rows), None):
            raise MergeError(
                f"{root / self.lists[split]} (task {task}) names {unknown}, which is in none of the {len(rows)} "
                f"classes of {place}",
                task=task,
            )
        pictures = ImageFiles([place / line for line in within], side, place)
        return Split(pictures, torch.tensor([rows[name] for name in classes]), tuple(names))


def _words(path: Path) -> list[str]:
    return InputFile(path, "a list").text("a list").decode().split()
