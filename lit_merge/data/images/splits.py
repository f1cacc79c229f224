"""SplitTasks: data sets that come in the splits train, validation and test."""

import functools
import hashlib
import zlib
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Integer
from torch import Tensor

from lit_merge.data.class_names import MIXED, MIXED_PROTOCOL, readable_name
from lit_merge.data.images.files import Pictures, readable
from lit_merge.data.leaks import OnLeak
from lit_merge.data.streams import Answers, ImageSource, JoinedImages, OrderedImages
from lit_merge.data.task_data import Labelled, TaskData
from lit_merge.errors import MergeError

SplitName = Literal["train", "validation", "test"]
PROTOCOLS = {
    "test": "transductive (adapted on the test images themselves, without their labels)",
    "train": "inductive (adapted on the training images)",
    "validation": "inductive (adapted on the validation images)",
}
# What the task-arithmetic code sets aside of training images for validation: this share, drawn with seed 0, at most so
# many.
SHARE, MOST, SHARE_SEED = 0.1, 5000, 0


@dataclass(frozen=True)
class Split:
    """Images of one split of a task, with their labels.

    Args:
        pictures: the images.
        labels: their classes, from 0.
        classes: names of the classes in the order of the labels; None where the data does not know them.
    """

    pictures: Pictures
    labels: Integer[Tensor, " N"]
    classes: tuple[str, ...] | None = None


class SplitTasks(TaskData):
    """Data with a split to adapt on and one to test on, per task; subclasses open them.

    Args:
        tasks: their names.
        adapt: the split adapted on.
        online: adapt in one pass, in an order drawn with `seed`, and predict each batch before it is used.
        mixed: adapt on one stream of the images of all tasks, without saying which is whose.
        on_bad_image: `refuse` or `skip`.
        on_leak: what happens where test images stand among others that are adapted on.
    """

    def __init__(
        self,
        tasks: Collection[str],
        adapt: SplitName,
        online: bool,
        mixed: bool,
        on_bad_image: Literal["refuse", "skip"],
        on_leak: OnLeak,
        image_size: int,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed)
        self._tasks, self.adapt = tuple(tasks), adapt
        self.online, self.mixed = online, mixed
        self.on_bad_image, self.on_leak, self.image_size = on_bad_image, on_leak, image_size
        # Not functools.cache: it would keep every instance alive, and does not pickle.
        self._opened: dict[tuple[str, str], tuple[ImageSource, Tensor, tuple[str, ...] | None]] = {}

    @abstractmethod
    def splits(self, task: str) -> Collection[str]:
        """Which of train, validation and test the task's data has of its own."""

    @abstractmethod
    def open(self, task: str, split: str) -> Split:
        """One of these splits."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    @property
    def protocol(self) -> str:
        online = ["online: one pass over the images to adapt on, each batch predicted before"] if self.online else []
        return "; ".join([PROTOCOLS[self.adapt], *online, *([MIXED_PROTOCOL] if self.mixed else [])])

    @property
    def inductive(self) -> bool:
        return self.adapt != "test"

    def has(self, split: str) -> bool:
        own = "train" if split == "validation" else split
        return all(split in found or own in found for found in map(self.splits, self.tasks))

    def identity(self, split: str) -> list[Any]:
        which = self.adapt if split == "adaptation" else split
        lengths = {}
        for task in self.tasks if self.has(which) else ():
            listed = repr(self._source(task, which)[0].lengths())
            lengths[task] = hashlib.blake2b(listed.encode(), digest_size=16).hexdigest()
        return [*super().identity(split), self.image_size, self.on_bad_image, lengths]

    def unlabelled(self) -> Mapping[str, ImageSource]:
        streams: dict[str, ImageSource] = {task: self._source(task, self.adapt)[0] for task in self.tasks}
        if self.mixed:
            streams = {MIXED: JoinedImages(list(streams.values()))}
        if not self.online:
            return streams
        return {name: OrderedImages(source, self._order(name, len(source))) for name, source in streams.items()}

    def answers(self) -> Mapping[str, Answers]:
        if not self.online:
            return {}
        labels = {task: self._source(task, self.adapt)[1] for task in self.tasks}
        known = {task: Answers([task] * len(found), found) for task, found in labels.items()}
        if self.mixed:
            known = {MIXED: Answers.joined(known.values())}
        return {name: found.ordered(self._order(name, len(found.tasks))) for name, found in known.items()}

    def labelled(self, split: str) -> Mapping[str, Labelled]:
        return {task: self._source(task, split)[:2] for task in self.tasks}

    def check_classes(self, split: str, classes: Callable[[str], int]) -> None:
        for task in self.tasks if self.has(split) else ():
            names, expected = self._source(task, split)[2], classes(task)
            if names is not None and len(names) != expected:
                raise MergeError(
                    f"the data of task {task} has {len(names)} classes, its head {expected}: take heads of this data",
                    task=task,
                )

    def class_names(self, task: str) -> list[str] | None:
        split = next((one for one in ("test", "train", "validation") if one in self.splits(task)), None)
        names = None if split is None else self._source(task, split)[2]
        return None if names is None else [readable_name(name) for name in names]

    def label_names(self, task: str, split: str) -> list[str] | None:
        names = self._source(task, self.adapt if split in ("adaptation", "answers") else split)[2]
        return None if names is None else [readable_name(name) for name in names]

    def _source(self, task: str, split: str) -> tuple[ImageSource, Tensor, tuple[str, ...] | None]:
        if (task, split) not in self._opened:
            self._opened[task, split] = self._open(task, split)
        return self._opened[task, split]

    def _open(self, task: str, split: str) -> tuple[ImageSource, Tensor, tuple[str, ...] | None]:
        own = self.splits(task)
        shared = split == "validation" and "validation" not in own
        if split not in own and not (shared and "train" in own):
            raise MergeError(f"task {task} has no {split} split, only {', '.join(own)}", task=task)
        found = self.open(task, "train" if shared else split)
        places: list[int] | None = None
        if shared or (split == "train" and "validation" not in own):
            places = share(len(found.pictures))[shared]
        if self.on_bad_image == "skip":
            good = set(readable(task, found.pictures))
            places = sorted(good) if places is None else [i for i in places if i in good]
        if places is None:
            return found.pictures, found.labels, found.classes
        return OrderedImages(found.pictures, places), found.labels[places], found.classes

    def _order(self, stream: str, size: int) -> list[int]:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{stream}".encode()))
        return torch.randperm(size, generator=generator).tolist()


@functools.cache
def share(images: int) -> tuple[list[int], list[int]]:
    """Places of the training images that stay for training, and of those set aside for validation."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(SHARE_SEED)).tolist()
    validation = min(int(SHARE * images), MOST)
    return order[: images - validation], order[images - validation :]
