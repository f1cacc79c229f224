"""Which images of every task are in the batch of a step."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch.utils.data import Sampler


class Draws(list[int]):
    """Which inputs of a task are in a batch, and how many of the task were drawn before."""

    def __init__(self, indices: Iterable[int], first: int) -> None:
        super().__init__(indices)
        self.first = first


class TaskBatchSampler(Sampler[dict[str, Draws]]):
    """One batch of every task per step. An epoch is one pass over the largest task.

    Every task is an endless sequence of permutations of its images, seeded by (seed, task, pass). A step's batch is a
    function of its number alone: nothing to store for a resume, and processes take turns without talking.

    Args:
        sizes: task → number of images.
        batch_size: images of each task per step and process.
        seed: of the permutations.
        rank, world_size: this process among how many.
        position: asked at the start of every pass: the number of the step that comes next. By default a pass goes on
            where the last one ended.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], int] | None = None,
    ) -> None:
        self.sizes = dict(sizes)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.position = position
        self.next = 0

    def __len__(self) -> int:
        return -(-max(self.sizes.values()) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[dict[str, Draws]]:
        first = self.next if self.position is None else self.position()
        for step in range(first, first + len(self)):
            self.next = step + 1
            yield self.at(step)

    def at(self, step: int) -> dict[str, Draws]:
        """The batch of a step."""
        start = (step * self.world_size + self.rank) * self.batch_size
        return {task: Draws(self._draw(task, start), start) for task in self.sizes}

    def _draw(self, task: str, start: int) -> list[int]:
        size = self.sizes[task]
        drawn: list[int] = []
        while len(drawn) < self.batch_size:
            turn, offset = divmod(start + len(drawn), size)
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{task}/{turn}".encode()))
            order = torch.randperm(size, generator=generator)
            drawn += order[offset : offset + self.batch_size - len(drawn)].tolist()
        return drawn


class OnePassSampler(Sampler[dict[str, Draws]]):
    """Every image once, in order, one batch of every task per step; a task that is used up is left out of later ones.

    Args:
        sizes: task → number of images.
        batch_size: images of each task per step.
        position: asked at the start: the number of the step that comes next, 0 by default.
    """

    def __init__(self, sizes: Mapping[str, int], batch_size: int, position: Callable[[], int] | None = None) -> None:
        self.sizes = dict(sizes)
        self.batch_size = batch_size
        self.position = position

    def __len__(self) -> int:
        return -(-max(self.sizes.values()) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Draws]]:
        for step in range(self.position() if self.position else 0, len(self)):
            start = step * self.batch_size
            ends = {task: min(start + self.batch_size, size) for task, size in self.sizes.items() if start < size}
            yield {task: Draws(range(start, end), start) for task, end in ends.items()}
