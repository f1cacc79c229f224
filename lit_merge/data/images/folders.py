"""ImageFolders: your own images, a folder per task."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor

from lit_merge.checkpoints.locations import resolve
from lit_merge.data.augmentation import ImageAugmentation
from lit_merge.data.class_names import MIXED, MIXED_PROTOCOL, match, read_class_names
from lit_merge.data.images.files import ImageFiles, OnBadImage, Side, by_class, class_names, find_images, readable
from lit_merge.data.leaks import Leak, OnLeak, find_leaks
from lit_merge.data.streams import Answers, ImageSource
from lit_merge.data.task_data import Labelled, TaskData
from lit_merge.errors import MergeError, check_choice


class ImageFolders(TaskData):
    """Unlabelled images per task to adapt on; labelled ones, in a folder per class, where accuracy is wanted.

    Args:
        adapt: task → folder of images, searched with its subfolders; or `mixed` → folder with images of all tasks,
            where nobody says which is whose. Not needed to `test` and `validate`.
        test: task → folder with one subfolder per class, whose sorted names are the rows of the task's head: as many
            as these, empty where there are no images.
        validation: the same, for `validate`.
        online: adapt in one pass over the images, in the order of their names, and predict each batch before it is
            used. These predictions are scored where all images of a task lie in its test folder too.
        on_bad_image: `refuse` ends with the first file that is no whole image. `skip` decodes all files once before
            they are used, and leaves out those that cannot be, with a warning that counts and names them.
        on_leak: copies of test images among others that are adapted on, found by their files: `warn`, `refuse` or
            `ignore`. Folders that are named both times are meant.
        image_size: side of the squares, in pixels; by default what the network takes.
        batch_size: images of each task, or of the mixed folder, per adaptation step and process.
        eval_batch_size: images per batch of validation and test.
        num_workers: processes that decode images.
        seed: of the order in which images are drawn.
        augment: changes images to adapt on a little each time that they come up; see `ImageAugmentation`.
        classes: task → the names of the head's rows in their order: a text file with one on every line, or the folder
            of a model whose config.json has them. `predict` writes them, also where no image is labelled; folders of
            classes go by these names then, and a class without images needs none.

    Raises:
        MergeError: a folder that is missing, unreadable or without images; an image that cannot be decoded, or a task
            all of whose images cannot be.
    """

    def __init__(
        self,
        adapt: dict[str, str] | None = None,
        test: dict[str, str] | None = None,
        validation: dict[str, str] | None = None,
        online: bool = False,
        on_bad_image: OnBadImage = "refuse",
        on_leak: OnLeak = "warn",
        image_size: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        augment: ImageAugmentation | None = None,
        classes: dict[str, str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, augment)
        check_choice("on_bad_image", on_bad_image, OnBadImage)
        check_choice("on_leak", on_leak, OnLeak)
        self.side, self.on_bad_image, self.on_leak = Side.of(image_size), on_bad_image, on_leak
        if not (adapt or test or validation):
            raise MergeError("no task: give --data.adapt, a folder of images for every task")
        adapt = adapt or {}
        self.online, self.mixed = online, MIXED in adapt
        if self.mixed and len(adapt) > 1:
            raise MergeError(f"adapt: {MIXED} means that all images are in one folder, so it goes without other tasks")
        for task in [*(test or {}), *(validation or {})]:
            if adapt and task not in adapt and not self.mixed:
                raise MergeError(
                    f"task {task} has labelled images but none to adapt on: give --data.adapt.{task}", task=task
                )
        self._adapt, self._classes = dict(adapt), dict(classes or {})
        self._labelled = {"test": test, "validation": validation}
        for task in self._classes:
            if task not in self.tasks and self.tasks != (MIXED,):
                raise MergeError(f"classes: there is no task {task!r}; there are {', '.join(self.tasks)}", task=task)
        self._listed = {folder: find_images(task, folder) for task, folder in adapt.items()}
        self._readable: dict[str, list[Path]] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        known = [task for folders in self._labelled.values() for task in folders or ()]
        return tuple(dict.fromkeys(known) if known and (self.mixed or not self._adapt) else self._adapt)

    @property
    def protocol(self) -> str:
        online = ["online: one pass over the images to adapt on, each batch predicted before"] if self.online else []
        return "; ".join([self._images_used(), *online, *([MIXED_PROTOCOL] if self.mixed else [])])

    def _images_used(self) -> str:
        if not self._adapt:
            return "not adapted on any image"
        if not self.has_test:
            return "adapted on the given folders, tested on none"
        adapted = {path.resolve() for folder in self._adapt.values() for path in self._listed[folder]}
        folders = self._labelled["test"] or {}
        tested = [path.resolve() for task, folder in folders.items() for path in find_images(task, folder)]
        shared = sum(path in adapted for path in tested)
        if not shared:
            return "inductive (adapted on other images than tested on)"
        part = "the test images" if shared == len(tested) else f"{shared} of the {len(tested)} test images"
        return f"transductive (adapted on {part}, without their labels)"

    @property
    def inductive(self) -> bool:
        return self._images_used().startswith("inductive")

    def leaks(self, pixels: bool = False) -> list[Leak]:
        if pixels:
            return super().leaks(pixels)
        # Files as they lie there: none has to be decoded to see whether it can be.
        folders = self._labelled["test"] or {}
        tested = {task: ImageFiles(find_images(task, folder), self.side) for task, folder in folders.items()}
        adapted = {task: ImageFiles(self._listed[folder], self.side) for task, folder in self._adapt.items()}
        return find_leaks(adapted, tested)

    def has(self, split: str) -> bool:
        return bool(self._labelled[split])

    def identity(self, split: str) -> list[Any]:
        folders = self._adapt if split == "adaptation" else self._labelled[split] or {}
        # A link that leads nowhere is an image that cannot be read: it is reported, or skipped, when it is needed.
        files = {
            task: [
                (str(path.relative_to(resolve(folder))), path.stat().st_size if path.exists() else None)
                for path in find_images(task, folder)
            ]
            for task, folder in folders.items()
        }
        return [*super().identity(split), *self.side.identity, self.on_bad_image, files]

    def unlabelled(self) -> Mapping[str, ImageSource]:
        if not self._adapt:
            raise MergeError("no images to adapt on: give --data.adapt, a folder of images for every task")
        return {
            name: ImageFiles(self._images(name, folder), self.side, resolve(folder))
            for name, folder in self._adapt.items()
        }

    def answers(self) -> Mapping[str, Answers]:
        if not (self.online and self.has_test):
            return {}
        known: dict[Path, tuple[str, int]] = {}
        for task, folder in (self._labelled["test"] or {}).items():
            paths, labels = self._by_class(task, folder)
            known |= {path.resolve(): (task, label) for path, label in zip(paths, labels.tolist(), strict=True)}
        found = {
            name: [known.get(path.resolve()) for path in self._images(name, folder)]
            for name, folder in self._adapt.items()
        }
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
            task: (ImageFiles(paths, self.side, resolve(folders[task])), labels)
            for task, (paths, labels) in found.items()
        }

    def check_classes(self, split: str, classes: Callable[[str], int]) -> None:
        for task, folder in (self._labelled[split] or {}).items():
            expected = classes(task)
            found = len(self.class_names(task) or ()) if task in self._classes else len(class_names(resolve(folder)))
            if found != expected and task in self._classes:
                raise MergeError(
                    f"{self._classes[task]} names {found} classes, the head of task {task} has {expected}: a name for "
                    "every row, in the order of the rows",
                    task=task,
                )
            if found != expected:
                raise MergeError(
                    f"{folder} has {found} class folders, the head of task {task} {expected} classes: sorted, the "
                    "folders are the head's rows; make empty ones for classes without images",
                    task=task,
                )

    def class_names(self, task: str) -> list[str] | None:
        if task in self._classes:
            return read_class_names(task, self._classes[task])
        folders = (self._labelled[split] or {} for split in ("test", "validation"))
        found = next((labelled[task] for labelled in folders if task in labelled), None)
        return None if found is None else class_names(resolve(found))

    def label_names(self, task: str, split: str) -> list[str] | None:
        folder = (self._labelled.get(split) or {}).get(task)
        return self.class_names(task) if folder is None or task in self._classes else class_names(resolve(folder))

    def _images(self, task: str, folder: str) -> list[Path]:
        """All images of a folder, sorted, or those that can be read."""
        if folder not in self._listed:
            self._listed[folder] = find_images(task, folder)
        if self.on_bad_image == "refuse":
            return self._listed[folder]
        if folder not in self._readable:
            listed = self._listed[folder]
            good = readable(task, ImageFiles(listed, self.side))
            self._readable[folder] = [listed[i] for i in good]
        return self._readable[folder]

    def _by_class(self, task: str, folder: str) -> tuple[list[Path], Integer[Tensor, " N"]]:
        paths, root = self._images(task, folder), resolve(folder)
        labels, folders = by_class(task, root, paths)
        if task not in self._classes:
            return paths, labels
        places = match(folders, read_class_names(task, self._classes[task]))
        if (strange := next((name for i, name in enumerate(folders) if i not in places), None)) is not None:
            raise MergeError(
                f"{root / strange} (task {task}): {self._classes[task]} names no such class: rename the folder, or "
                "name the class in the place of its row",
                task=task,
            )
        return paths, torch.tensor([places[i] for i in range(len(folders))])[labels]
