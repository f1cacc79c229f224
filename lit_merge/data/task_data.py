"""TaskData: a DataModule with one unlabelled stream per task to adapt on, and labelled inputs to evaluate on."""

import functools
import hashlib
import json
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor
from torch.utils.data import DataLoader

from lit_merge.console import listed
from lit_merge.data.augmentation import Augmentation
from lit_merge.data.class_names import MIXED, ClassNames
from lit_merge.data.data_module import DataModule
from lit_merge.data.leaks import Leak, OnLeak, find_leaks
from lit_merge.data.samplers import OnePassSampler, TaskBatchSampler
from lit_merge.data.streams import Answers, ImageSource, LabelledImages, UnlabelledImages
from lit_merge.errors import MergeError, MergeWarning, check_between

Labelled = tuple[ImageSource, Tensor | None]
PairClasses = Callable[[str, Sequence[str] | None, bool], Sequence[int] | None]
"""See `Heads.rows_of`."""

# Of each task in one step: more is in no machine's memory, and drawing it would never end.
LARGEST_BATCH = 1 << 20


class TaskData(ClassNames, DataModule):
    """What data of lit_merge is: a LightningDataModule with images of every task.

    Args:
        batch_size: images of each task per adaptation step and process.
        eval_batch_size: images per batch of validation, test and predict.
        num_workers: processes that read images; 0 reads in the main process.
        seed: of the order in which images are drawn.
        augment: what changes images to adapt on a little each time that they come up.

    `online` says that the images to adapt on pass once, in order, and that the fit ends with them; `mixed` that they
    are one stream, of that name, of which nobody knows which task an image belongs to; `on_leak` what happens where
    `inductive` data adapts on test images.
    """

    online: bool = False
    mixed: bool = False
    on_leak: OnLeak = "ignore"

    def __init__(
        self, batch_size: int, eval_batch_size: int, num_workers: int, seed: int, augment: Augmentation | None = None
    ) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise MergeError(f"batch_size={batch_size}, eval_batch_size={eval_batch_size}: expected at least 1")
        if batch_size > LARGEST_BATCH:
            raise MergeError(f"batch_size={batch_size}: expected at most {LARGEST_BATCH:,}, which a memory can hold")
        check_between("num_workers", num_workers, 0, 1024)
        check_between("seed", seed, 0, 2**63 - 1)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed, self.augment = num_workers, seed, augment

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks whose images these are; `mixed` alone where none is known."""

    @property
    @abstractmethod
    def protocol(self) -> str:
        """Which images are adapted and which tested on, in a sentence for reports."""

    @property
    def inductive(self) -> bool:
        """Whether no test image is meant to be adapted on."""
        return False

    @property
    def has_test(self) -> bool:
        """Whether there are labelled images to test on."""
        return self.has("test")

    def has(self, split: str) -> bool:
        """Whether there are labelled images of `validation` or `test`."""
        return True

    @abstractmethod
    def unlabelled(self) -> Mapping[str, ImageSource]:
        """task → images to adapt on, or `mixed` → images of all. Hands on no label."""

    def answers(self) -> Mapping[str, Answers]:
        """Stream → what is known of its images; streams of unknown images are left out. Asked once an online stream is
        over, to score what was predicted of it."""
        return {}

    @abstractmethod
    def labelled(self, split: str) -> Mapping[str, Labelled]:
        """task → images and labels of `validation` or `test`."""

    def suit(self, network: Any) -> None:
        """Takes from a network how it makes squares of images, and their side where none was chosen."""
        side, wanted = getattr(self, "side", None), getattr(network, "image_size", None)
        if side is not None and wanted is not None:
            side.pixels = side.pixels if side.chosen else wanted
            side.geometry = getattr(network, "geometry", side.geometry)
            self.__dict__.pop("fingerprint", None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {len(self.tasks)} tasks ({listed(self.tasks)}); {self.protocol}"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f"<div>{escape(repr(self))}</div>"

    def identity(self, split: str) -> list[Any]:
        """What tells the images of `adaptation` or `test` from others, as far as it is cheap to know: every option that
        chooses or changes images, names and sizes of files. For JSON; must not open a file that holds labels."""
        return [type(self).__name__, list(self.tasks), self.protocol]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the images to adapt on: a fit goes on with these only."""
        changed = [] if self.augment is None else [asdict(self.augment)]
        text = json.dumps([*self.identity("adaptation"), *changed], default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def check_classes(self, split: str, classes: Callable[[str], int]) -> None:
        """Raises MergeError where the data itself shows that the number of a task's classes is not that of its head,
        `classes`."""

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        sources = self.unlabelled()
        for task, source in sources.items():
            if not len(source):
                raise MergeError(f"task {task} has no input to adapt on", task=task)
        if self.inductive and self.has_test and self.on_leak != "ignore" and self._place()[0] == 0:
            self._report_leaks(self.leaks())
        sizes = {task: len(source) for task, source in sources.items()}
        dataset = UnlabelledImages(sources, self._augmenter(sources))
        return self._loader(dataset, self._one_pass(sizes) if self.online else self.passes(sizes))

    def _augmenter(self, sources: Mapping[str, ImageSource]) -> Callable[[Tensor, str, int], Tensor] | None:
        if self.augment is None:
            return None
        if self.online:
            raise MergeError("augment: what is predicted of an online stream is predicted of the inputs as they are")
        for task in self.augment.spare:
            if task not in sources:
                raise MergeError(f"augment: spare names a task {task!r}; the data has {', '.join(sources)}", task=task)
        return functools.partial(self.augment, self.seed)

    def leaks(self, pixels: bool = False) -> list[Leak]:
        """Tasks with test images that are adapted on; see `find_leaks`."""
        tested = {task: source for task, (source, _) in self.labelled("test").items()}
        return find_leaks(self.unlabelled(), tested, pixels)

    def _report_leaks(self, leaks: Sequence[Leak]) -> None:
        for leak in leaks:
            if self.on_leak == "refuse":
                raise MergeError(f"{leak}: leave them out, or set on_leak: warn", task=leak.task)
            warnings.warn(f"{leak}, so its accuracy is not inductive", MergeWarning, stacklevel=2)

    @property
    def steps(self) -> int | None:
        """Batches of an online stream; None for one that goes on for as long as it is asked."""
        if not self.online:
            return None
        return len(OnePassSampler({task: len(source) for task, source in self.unlabelled().items()}, self.batch_size))

    def passes(self, sizes: Mapping[str, int]) -> TaskBatchSampler:
        """Which of so many inputs of every task this process adapts on at every step, unless they are `online`."""
        rank, world_size = self._place()
        return TaskBatchSampler(sizes, self.batch_size, self.seed, rank, world_size, self._position())

    def _one_pass(self, sizes: Mapping[str, int]) -> OnePassSampler:
        if self._place()[1] > 1:
            raise MergeError("an online stream has one order, so it is adapted on by one process: --trainer.devices 1")
        if self.trainer is not None:
            # The fit ends with the stream, however many steps the trainer was given.
            self.trainer.fit_loop.max_epochs = 1
        return OnePassSampler(sizes, self.batch_size, self._position())

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._evaluation("validation")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._evaluation("test")

    def class_names(self, task: str) -> Sequence[str] | None:
        return None

    def label_names(self, task: str, split: str) -> Sequence[str] | None:
        """Names of the classes in the order of the labels of a split; None where they are not known.

        Args:
            task: one of `tasks`.
            split: `test` or `validation`; `answers` to an online stream; or `adaptation`, for which no label is read.
        """
        return self.class_names(task)

    def names_itself(self, task: str) -> bool:
        """Whether these names are the data's own, rather than what the literature calls classes that it numbers."""
        return True

    def label_rows(self, split: str, heads: PairClasses) -> dict[str, Integer[Tensor, " C"]]:
        """Task → which row of its head each class of a split is, where data and head both know what they are called.

        Raises:
            MergeError: a class that only one of them has.
        """
        known = [task for task in self.tasks if task != MIXED]
        found = {task: heads(task, self.label_names(task, split), self.names_itself(task)) for task in known}
        return {task: torch.tensor(rows) for task, rows in found.items() if rows is not None}

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """The test images; where there are none, those to adapt on."""
        if self.has_test:
            return self._evaluation("test")
        return self._in_turn({task: (source, None) for task, source in self.unlabelled().items()})

    def _evaluation(self, split: str) -> DataLoader[dict[str, Any]]:
        return self._in_turn(self.labelled(split))

    def _in_turn(self, sources: Mapping[str, Labelled]) -> DataLoader[dict[str, Any]]:
        rank, world_size = self._place()
        size = self.eval_batch_size
        # A process without any batch would not take part in what the others exchange, and they would wait for ever.
        while len(dataset := LabelledImages(sources, size, MIXED if self.mixed else None)) < world_size and size > 1:
            size = -(-size // 2)
        if len(dataset) < world_size:
            raise MergeError(f"{len(dataset)} inputs for {world_size} processes: take fewer --trainer.devices")
        return self._loader(dataset, range(rank, len(dataset), world_size))

    def _loader(self, dataset: Any, sampler: Any) -> DataLoader[Any]:
        # batch_size=None: the datasets answer with whole batches.
        # A generator of its own: starting a pass draws from it, and would shift what a resumed fit draws otherwise.
        own = torch.Generator().manual_seed(self.seed)
        # From pinned memory, batches go to a GPU while it computes.
        pinned, workers = torch.cuda.is_available(), self.num_workers
        return DataLoader(
            dataset, batch_size=None, sampler=sampler, num_workers=workers, generator=own, pin_memory=pinned
        )

    def _position(self) -> Callable[[], int] | None:
        # From the trainer, which knows it after a resume too; a batch is one step where gradients are not accumulated.
        trainer = self.trainer
        return None if trainer is None else lambda: trainer.global_step * trainer.accumulate_grad_batches

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)


def check_tasks(data: TaskData, tasks: tuple[str, ...]) -> None:
    """Raises MergeError where the data's tasks are not those of the merge."""
    for task in data.tasks:
        if task not in tasks and task != MIXED:
            raise MergeError(
                f"the data has a task {task!r} that is not merged (merged: {', '.join(tasks)}): add its expert, "
                "or choose tasks with --data.tasks",
                task=task,
            )
    for task in tasks:
        if task not in data.tasks and not data.mixed:
            raise MergeError(
                f"the merge has a task {task!r} without data (data: {', '.join(data.tasks)}): add it, "
                "or leave out its expert",
                task=task,
            )
