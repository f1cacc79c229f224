"""Streams: unlabelled batches of every task for adaptation, labelled batches of one task for evaluation."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Integer, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from lit_merge.data.samplers import Draws


class ImageSource(ABC):
    """Images without labels, read when asked for."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "B ..."]:
        """uint8 images, (B, H, W) or (B, 3, H, W)."""

    def names(self, indices: Sequence[int]) -> list[str] | None:
        """Paths of the images' files from the task's folder, where they are files."""
        return None

    def text(self, index: int) -> str | None:
        """An input that is a text, for people to read; None for images."""
        return None

    def label(self, index: int) -> str:
        """What messages call an image."""
        return f"image {index}"

    def content(self, index: int) -> bytes:
        """The bytes of an image's file, or its pixels where there is no file: equal for copies."""
        return self.read([index]).numpy().tobytes()

    def lengths(self) -> list[int]:
        """Number of bytes in every image's `content`: contents of different lengths differ without being read."""
        return [len(self.content(i)) for i in range(len(self))]

    def pixels(self, index: int) -> bytes:
        """An image decoded, at its full size: equal for copies that were written to other files."""
        return self.content(index)


class ImageTensor(ImageSource):
    """Images that are in memory."""

    def __init__(self, images: UInt8[Tensor, "N ..."]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "B ..."]:
        return self.images[list(indices)]

    def lengths(self) -> list[int]:
        return [self.images[:1].numel()] * len(self)


class ArrangedImages(ImageSource):
    """Images of one or several sources, which have names where it is one.

    Args:
        sources: whose images these are.
        order: of every image its place among those of all sources; one source after the other by default.
    """

    def __init__(self, sources: Sequence[ImageSource], order: Sequence[int] | None = None) -> None:
        self.sources = list(sources)
        self.ends = list(accumulate(len(source) for source in self.sources))
        self.order = range(self.ends[-1]) if order is None else list(order)

    def __len__(self) -> int:
        return len(self.order)

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "B ..."]:
        if len(self.sources) == 1:
            return self.sources[0].read([self.order[i] for i in indices])
        return torch.cat([source.read([place]) for source, place in map(self._find, indices)])

    def names(self, indices: Sequence[int]) -> list[str] | None:
        return self.sources[0].names([self.order[i] for i in indices]) if len(self.sources) == 1 else None

    def label(self, index: int) -> str:
        source, place = self._find(index)
        return source.label(place)

    def content(self, index: int) -> bytes:
        source, place = self._find(index)
        return source.content(place)

    def lengths(self) -> list[int]:
        lengths = [length for source in self.sources for length in source.lengths()]
        return [lengths[place] for place in self.order]

    def pixels(self, index: int) -> bytes:
        source, place = self._find(index)
        return source.pixels(place)

    def _find(self, index: int) -> tuple[ImageSource, int]:
        place = self.order[index]
        which = bisect_right(self.ends, place)
        return self.sources[which], place - (self.ends[which - 1] if which else 0)


@dataclass(frozen=True)
class Answers:
    """What a simulation knows of every image of a stream, in the order of the stream. Adaptation never sees it.

    Args:
        tasks: which task each image belongs to.
        classes: its class there.
    """

    tasks: Sequence[str]
    classes: Integer[Tensor, " N"]

    def ordered(self, order: Sequence[int]) -> "Answers":
        return Answers([self.tasks[i] for i in order], self.classes[list(order)])

    @classmethod
    def joined(cls, parts: Iterable["Answers"]) -> "Answers":
        parts = list(parts)
        return cls([task for part in parts for task in part.tasks], torch.cat([part.classes for part in parts]))


class UnlabelledImages(Dataset[dict[str, Tensor]]):
    """{task: images} without labels. An index is what `TaskBatchSampler` yields.

    Args:
        sources: task → its images.
        augment: what changes a batch, from the images, the task, and how many of it were drawn before.
    """

    def __init__(
        self, sources: Mapping[str, ImageSource], augment: Callable[[Tensor, str, int], Tensor] | None = None
    ) -> None:
        self.sources, self.augment = dict(sources), augment

    def __getitem__(self, indices: Mapping[str, Draws]) -> dict[str, Tensor]:
        read = {task: self.sources[task].read(chosen) for task, chosen in indices.items()}
        if self.augment is None:
            return read
        return {task: self.augment(inputs, task, indices[task].first) for task, inputs in read.items()}


class LabelledImages(Dataset[dict[str, Any]]):
    """Batches {"task", "images", "labels", "indices"} of one task each, task after task. "labels" is there where they
    are known, "files" where images are files, "head" where another head than the task's own classifies them."""

    def __init__(
        self, sources: Mapping[str, tuple[ImageSource, Tensor | None]], batch_size: int, head: str | None = None
    ) -> None:
        self.sources, self.head = dict(sources), head
        self.batches = [
            (task, range(start, min(start + batch_size, len(source))))
            for task, (source, _) in self.sources.items()
            for start in range(0, len(source), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Any]:
        task, chosen = self.batches[index]
        source, labels = self.sources[task]
        indices = torch.tensor(chosen)
        batch = {"task": task, "images": source.read(chosen), "indices": indices}
        if (names := source.names(chosen)) is not None:
            batch["files"] = names
        if self.head is not None:
            batch["head"] = self.head
        return batch if labels is None else batch | {"labels": labels[indices].long()}
