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

from lit_merge.data.augmentation import ImageAugmentation
from lit_merge.data.class_names import MIXED, MIXED_PROTOCOL, readable_name
from lit_merge.data.images.files import OnBadImage, Pictures, Side, readable
from lit_merge.data.leaks import OnLeak
from lit_merge.data.streams import Answers, ArrangedImages, ImageSource
from lit_merge.data.task_data import Labelled, TaskData
from lit_merge.errors import MergeError, check_choice

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


class StreamedTasks(TaskData):
    """Tasks whose images to adapt on may be mixed in one stream, and pass once in an order of its own where it is
    online; subclasses say which images these are."""

    _tasks: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._tasks

    @abstractmethod
    def adapted(self, task: str) -> tuple[ImageSource, Callable[[], Tensor]]:
        """Images to adapt on, and what reads their labels."""

    def order(self, stream: str, size: int) -> list[int]:
        """The order in which an online stream passes."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{stream}".encode()))
        return torch.randperm(size, generator=generator).tolist()

    def known(self) -> dict[str, Answers]:
        """What is known of the images of every stream, before they are put into its order."""
        labels = {task: self.adapted(task)[1]() for task in self.tasks}
        found = {task: Answers([task] * len(classes), classes) for task, classes in labels.items()}
        return {MIXED: Answers.joined(found.values())} if self.mixed else found

    def unlabelled(self) -> Mapping[str, ImageSource]:
        streams = {task: self.adapted(task)[0] for task in self.tasks}
        if self.mixed:
            streams = {MIXED: ArrangedImages(list(streams.values()))}
        if not self.online:
            return streams
        return {name: ArrangedImages([source], self.order(name, len(source))) for name, source in streams.items()}

    def answers(self) -> Mapping[str, Answers]:
        known = self.known() if self.online else {}
        return {name: found.ordered(self.order(name, len(found.tasks))) for name, found in known.items()}


class SplitTasks(StreamedTasks):
    """Data with a split to adapt on and one to test on, per task; subclasses open them.

    Args:
        tasks: their names.
        adapt: the split adapted on: `train` or `validation` is inductive, `test` transductive.
        online: adapt in one pass, in random order, and predict each batch before it is used.
        mixed: adapt on one stream of the images of all tasks, without saying which is whose.
        on_bad_image: `refuse` ends with the first image that cannot be decoded; `skip` decodes all once and leaves
            those out, with a warning that counts and names them.
        on_leak: test images among others that are adapted on, found by their files: `warn`, `refuse` or `ignore`.
        image_size: side of the squares, in pixels; by default what the network takes.
        batch_size: images of each task, or of the mixed stream, per adaptation step and process.
        eval_batch_size: images per batch of validation and test.
        num_workers: processes that decode images.
        seed: of the order in which images are drawn.
        augment: changes images to adapt on a little each time that they come up; see `ImageAugmentation`.
    """

    def __init__(
        self,
        tasks: Collection[str],
        adapt: SplitName,
        online: bool = False,
        mixed: bool = False,
        on_bad_image: OnBadImage = "refuse",
        on_leak: OnLeak = "warn",
        image_size: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
        augment: ImageAugmentation | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, augment)
        for name, value, kind in (
            ("adapt", adapt, SplitName),
            ("on_bad_image", on_bad_image, OnBadImage),
            ("on_leak", on_leak, OnLeak),
        ):
            check_choice(name, value, kind)
        self._tasks, self.adapt = tuple(tasks), adapt
        self.online, self.mixed = online, mixed
        self.on_bad_image, self.on_leak, self.side = on_bad_image, on_leak, Side.of(image_size)
        # Not functools.cache: it would keep every instance alive, and does not pickle.
        self._opened: dict[tuple[str, str], tuple[ImageSource, Tensor, tuple[str, ...] | None]] = {}

    @abstractmethod
    def splits(self, task: str) -> Collection[str]:
        """Which of train, validation and test the task's data has of its own."""

    @abstractmethod
    def open(self, task: str, split: str) -> Split:
        """One of these splits."""

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
        return [*super().identity(split), *self.side.identity, self.on_bad_image, lengths]

    def adapted(self, task: str) -> tuple[ImageSource, Callable[[], Tensor]]:
        images, labels, _ = self._source(task, self.adapt)
        return images, lambda: labels

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
        return ArrangedImages([found.pictures], places), found.labels[places], found.classes


@functools.cache
def share(images: int) -> tuple[list[int], list[int]]:
    """Places of the training images that stay for training, and of those set aside for validation."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(SHARE_SEED)).tolist()
    validation = min(int(SHARE * images), MOST)
    return order[: images - validation], order[images - validation :]
