"""ImageFolders: your own images, a folder per task."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lit_merge.data.base import Labelled, TaskData
from lit_merge.data.streams import Answers, ImageSource
from lit_merge.errors import MergeError
from lit_merge.locations import resolve
from lit_merge.mixed import MIXED, MIXED_PROTOCOL

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class ImageFiles(ImageSource):
    """Image files, decoded when read: shorter side resized to `image_size`, centre cropped, RGB."""

    def __init__(self, paths: Sequence[Path], image_size: int, root: Path | None = None) -> None:
        self.paths = list(paths)
        self.image_size = image_size
        self.root = root

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "B 3 H W"]:
        return torch.stack([self._decode(self.paths[i]) for i in indices])

    def names(self, indices: Sequence[int]) -> list[str] | None:
        if self.root is None:
            return None
        paths = (self.paths[i].relative_to(self.root).as_posix() for i in indices)
        # Names that are no UTF-8 can be written nowhere as they are.
        return [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths]

    def _decode(self, path: Path) -> UInt8[Tensor, "3 H W"]:
        try:
            with Image.open(path) as image:
                upright = to_rgb(ImageOps.exif_transpose(image))
        except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
            raise UnreadableImage(f"{path} cannot be read as an image: {error}: mend or remove it") from error
        square = ImageOps.fit(upright, (self.image_size, self.image_size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)


class UnreadableImage(MergeError):
    """An image that cannot be decoded. Where a worker process of the DataLoader met it, torch writes the traceback
    there before the message; only what follows is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("UnreadableImage: ")[2])


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits of red, green and blue from any mode; transparency is left out."""
    if image.mode.startswith("I"):
        # 16 bits: `convert` would clip them at 255 rather than scale them.
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


class ImageFolders(TaskData):
    """Unlabelled images per task to adapt on; labelled ones, in a folder per class, where accuracy is wanted.

    Args:
        adapt: task → folder of images, searched with its subfolders; or `mixed` → folder with images of all tasks,
            where nobody says which is whose.
        test: task → folder with one subfolder per class, whose sorted names are the rows of the task's head: as many
            as these, empty where there are no images.
        validation: the same, for `validate`.
        online: adapt in one pass over the images, in the order of their names, and predict each batch before it is
            used. These predictions are scored where all images of a task lie in its test folder too.
        image_size: side of the squares that the network takes.
        batch_size: images of each task, or of the mixed folder, per adaptation step and process.
        eval_batch_size: images per batch of validation and test.
        num_workers: processes that decode images.
        seed: of the order in which images are drawn.

    Raises:
        MergeError: a folder that is missing, unreadable or without images; an image that cannot be decoded.
    """

    def __init__(
        self,
        adapt: dict[str, str],
        test: dict[str, str] | None = None,
        validation: dict[str, str] | None = None,
        online: bool = False,
        image_size: int = 224,
        batch_size: int = 16,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self.image_size = image_size
        if not adapt:
            raise MergeError("no task: give --data.adapt, a folder of images for every task")
        self.online, self.mixed = online, MIXED in adapt
        if self.mixed and len(adapt) > 1:
            raise MergeError(f"adapt: {MIXED} means that all images are in one folder, so it goes without other tasks")
        for task in [*(test or {}), *(validation or {})]:
            if task not in adapt and not self.mixed:
                raise MergeError(
                    f"task {task} has labelled images but none to adapt on: give --data.adapt.{task}", task=task
                )
        self._folders = dict(adapt)
        self._adapt = {task: find_images(task, folder) for task, folder in adapt.items()}
        self._labelled = {"test": test, "validation": validation}

    @property
    def tasks(self) -> tuple[str, ...]:
        known = [task for folders in self._labelled.values() for task in folders or ()]
        return tuple(dict.fromkeys(known) if self.mixed and known else self._adapt)

    @property
    def protocol(self) -> str:
        online = ["online: one pass over the images to adapt on, each batch predicted before"] if self.online else []
        return "; ".join([self._images_used(), *online, *([MIXED_PROTOCOL] if self.mixed else [])])

    def _images_used(self) -> str:
        if not self.has_test:
            return "adapted on the given folders, tested on none"
        adapted = {path.resolve() for paths in self._adapt.values() for path in paths}
        folders = self._labelled["test"] or {}
        tested = [path.resolve() for task, folder in folders.items() for path in find_images(task, folder)]
        shared = sum(path in adapted for path in tested)
        if not shared:
            return "inductive (adapted on other images than tested on)"
        part = "the test images" if shared == len(tested) else f"{shared} of the {len(tested)} test images"
        return f"transductive (adapted on {part}, without their labels)"

    def has(self, split: str) -> bool:
        return bool(self._labelled[split])

    def identity(self, split: str) -> list[Any]:
        folders = self._folders if split == "adaptation" else self._labelled[split] or {}
        files = {
            task: [(str(path.relative_to(resolve(folder))), path.stat().st_size) for path in find_images(task, folder)]
            for task, folder in folders.items()
        }
        return [*super().identity(split), self.image_size, files]

    def unlabelled(self) -> Mapping[str, ImageSource]:
        return {
            task: ImageFiles(paths, self.image_size, resolve(self._folders[task]))
            for task, paths in self._adapt.items()
        }

    def answers(self) -> Mapping[str, Answers]:
        if not (self.online and self.has_test):
            return {}
        known: dict[Path, tuple[str, int]] = {}
        for task, folder in (self._labelled["test"] or {}).items():
            paths, labels = self._by_class(task, folder)
            known |= {path.resolve(): (task, label) for path, label in zip(paths, labels.tolist(), strict=True)}
        found = {name: [known.get(path.resolve()) for path in paths] for name, paths in self._adapt.items()}
        return {
            name: Answers([pair[0] for pair in pairs if pair], torch.tensor([pair[1] for pair in pairs if pair]))
            for name, pairs in found.items()
            if all(pairs)
        }

    def labelled(self, split: str) -> Mapping[str, Labelled]:
        folders = self._labelled[split]
        if not folders:
            raise MergeError(f"no {split} images: pass --data.{split} with a folder of class folders per task")
        found = {task: self._by_class(task, folder) for task, folder in folders.items()}
        return {
            task: (ImageFiles(paths, self.image_size, resolve(folders[task])), labels)
            for task, (paths, labels) in found.items()
        }

    def check_classes(self, split: str, classes: Callable[[str], int]) -> None:
        for task, folder in (self._labelled[split] or {}).items():
            found, expected = len(class_names(resolve(folder))), classes(task)
            if found != expected:
                raise MergeError(
                    f"{folder} has {found} class folders, the head of task {task} {expected} classes: sorted, the "
                    "folders are the head's rows; make empty ones for classes without images",
                    task=task,
                )

    def class_names(self, task: str) -> list[str] | None:
        folders = (self._labelled[split] or {} for split in ("test", "validation"))
        found = next((labelled[task] for labelled in folders if task in labelled), None)
        return None if found is None else class_names(resolve(found))

    def _by_class(self, task: str, folder: str) -> tuple[list[Path], Integer[Tensor, " N"]]:
        paths = find_images(task, folder)
        root = resolve(folder)
        classes = class_names(root)
        if any(path.parent == root for path in paths):
            raise MergeError(
                f"{root} (task {task}): expected one subfolder per class, found images beside them", task=task
            )
        return paths, torch.tensor([classes.index(path.relative_to(root).parts[0]) for path in paths])


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
