"""Suite: the images of a built-in zoo."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Integer
from torch import Tensor

from lit_merge.checkpoints import SafetensorsFile
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.locations import resolve
from lit_merge.data.augmentation import ImageAugmentation
from lit_merge.data.class_names import MIXED_PROTOCOL
from lit_merge.data.images.corruptions import CorruptedImages, Corruption, Kind
from lit_merge.data.images.splits import StreamedTasks
from lit_merge.data.streams import ArrangedImages, ImageSource, ImageTensor
from lit_merge.data.task_data import Labelled
from lit_merge.errors import MergeError, check_choice

Protocol = Literal["inductive", "transductive", "online"]
PROTOCOLS: dict[Protocol, str] = {
    "inductive": "inductive (adapted on other images, of other fonts, than tested on)",
    "transductive": "transductive (adapted on the test images themselves, without their labels)",
    "online": "online (one pass over the test images, each batch predicted before it is adapted on; adapted: the merge "
    "at the end of the stream, on the same images)",
}
Order = Literal["random", "label"]


class Suite(StreamedTasks):
    """Images of a folder that scripts/build_zoo.py made: uint8, 32 × 32.

    Args:
        path: `zoo:8` (shipped), `zoo:14`, `zoo:20` or a folder.
        protocol: `inductive` adapts on the adaptation images and tests on the test images; `transductive` adapts on
            the test images, whose labels it does not read; `online` too, in one pass.
        tasks: some of the suite's tasks; all by default.
        order: of an online stream. `label` sorts it by class, which is as skewed as a stream can be; it reads labels
            to do so, and hands on nothing but images.
        sizes: task → number of its images to adapt on, for tasks of unequal sizes; all by default.
        mixed: adapt on one stream of the images of all tasks, without saying which is whose.
        corruption: noise, blur, contrast, brightness or pixelate, of all images: adapted and tested on.
        severity: of the corruption, 1 to 5; 3 by default.
        batch_size: images of each task, or of the mixed stream, per adaptation step and process.
        eval_batch_size: images per batch of validation and test.
        seed: of the order in which images are drawn, and of the noise.
        augment: changes images to adapt on a little each time that they come up; see `ImageAugmentation`.

    Raises:
        MergeError: no suite there, or a task or a number of images that it does not have; no such corruption; an order
            without `online`.
    """

    def __init__(
        self,
        path: str = "zoo:8",
        protocol: Protocol = "inductive",
        tasks: list[str] | None = None,
        order: Order = "random",
        sizes: dict[str, int] | None = None,
        mixed: bool = False,
        corruption: Kind | None = None,
        severity: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 500,
        seed: int = 0,
        augment: ImageAugmentation | None = None,
    ) -> None:
        # Images come from memory: a reading process would only cost.
        super().__init__(batch_size, eval_batch_size, num_workers=0, seed=seed, augment=augment)
        check_choice("protocol", protocol, Protocol)
        check_choice("order", order, Order)
        if order != "random" and protocol != "online":
            raise MergeError(
                f"order={order} is of an online stream; other protocols draw at random: set protocol: online"
            )
        self.path: Path = resolve(path)
        self._protocol, self._order = protocol, order
        self.online, self.mixed = protocol == "online", mixed
        if severity is not None and corruption is None:
            raise MergeError(f"severity={severity} of no corruption: set corruption too")
        self._corruption = (
            None if corruption is None else Corruption(corruption, 3 if severity is None else severity, seed)
        )
        self._images = SafetensorsFile(self.path / "images.safetensors")
        all_tasks = tuple(dict.fromkeys(name.rpartition("/")[0] for name in self._images.shapes))
        if tasks is not None and not tasks:
            raise MergeError("tasks=[] names no task: leave it out for all of them")
        for task in tasks or ():
            if task not in all_tasks:
                raise MergeError(f"{path} has no task {task!r}; it has {', '.join(all_tasks)}", task=task)
            if tasks is not None and tasks.count(task) > 1:
                raise MergeError(f"tasks={tasks} names {task!r} twice", task=task)
        self._tasks = tuple(tasks or all_tasks)
        self._sizes = self._checked(sizes or {})

    @property
    def protocol(self) -> str:
        notes = [PROTOCOLS[self._protocol]]
        if self.mixed:
            notes.append(MIXED_PROTOCOL)
        if self._order == "label":
            notes.append("stream sorted by class")
        if self._sizes:
            notes.append("adapted on " + ", ".join(f"{size} images of {task}" for task, size in self._sizes.items()))
        if self._corruption is not None:
            notes.append(f"all images corrupted: {self._corruption.kind}, severity {self._corruption.severity}")
        return "; ".join(notes)

    @property
    def inductive(self) -> bool:
        return self._protocol == "inductive"

    @property
    def _split(self) -> str:
        """Which images are adapted on."""
        return "adaptation" if self._protocol == "inductive" else "test"

    def class_names(self, task: str) -> list[str] | None:
        path = self.path / "zoo.json"
        if not path.is_file():
            return None
        try:
            about = parse_json(path.read_bytes())
            return next((one["classes"] for one in about["tasks"] if one["name"] == task), None)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise MergeError(f"{path} names no classes: {error}") from error

    def identity(self, split: str) -> list[Any]:
        # Contents, which are small and read anyway: suites of other seeds have equal names and sizes.
        return [*super().identity(split), hashlib.blake2b(self._images.file.read()).hexdigest()]

    def adapted(self, task: str) -> tuple[ImageSource, Callable[[], Tensor]]:
        images, size = self._source(f"{task}/{self._split}"), self._sizes.get(task)
        images = images if size is None else ArrangedImages([images], range(size))
        return images, lambda: self._labels(task, self._split)[:size].long()

    def order(self, stream: str, size: int) -> list[int]:
        found = super().order(stream, size)
        if self._order == "label":
            known = self.known()[stream]
            keys = known.classes + (1 << 20) * torch.tensor([self.tasks.index(task) for task in known.tasks])
            found.sort(key=keys.tolist().__getitem__)
        return found

    def labelled(self, split: str) -> Mapping[str, Labelled]:
        return {task: (self._source(f"{task}/{split}"), self._labels(task, split)) for task in self.tasks}

    def _source(self, name: str) -> ImageSource:
        images = ImageTensor(self._images.read(name))
        return images if self._corruption is None else CorruptedImages(images, self._corruption, name)

    def _labels(self, task: str, split: str) -> Integer[Tensor, " N"]:
        labels = SafetensorsFile(self.path / "labels.safetensors").read(f"{task}/{split}")
        images, *_ = self._images.shapes[f"{task}/{split}"]
        if images != len(labels):
            raise MergeError(f"{self.path}: {task}/{split} has {images} images and {len(labels)} labels", task=task)
        return labels

    def _checked(self, sizes: Mapping[str, int]) -> dict[str, int]:
        for task, size in sizes.items():
            if task not in self._tasks:
                raise MergeError(f"sizes: there is no task {task!r}; there are {', '.join(self._tasks)}", task=task)
            there, *_ = self._images.shapes[f"{task}/{self._split}"]
            if not 1 <= size <= there:
                raise MergeError(f"sizes: {size} images of {task}, which has {there} to adapt on", task=task)
        return dict(sizes)
