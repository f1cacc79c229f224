"""Images of the tasks: endless batches to train on, and the fixed sets of each split."""

from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor
from torch.utils.data import IterableDataset

from zoo.domains import SHARES, images, mild
from zoo.masters import Masters
from zoo.tasks import TASKS

Batch = tuple[Tensor, Tensor]


class Batches(IterableDataset[Batch]):
    """A number of batches drawn one by one with a generator of its own, so that a seed says what comes."""

    def __init__(self, draw: Callable[[Generator], Batch], count: int, seed: int) -> None:
        super().__init__()
        self._draw, self._count, self._seed = draw, count, seed

    def __iter__(self) -> Iterator[Batch]:
        generator = Generator().manual_seed(self._seed)
        for _ in range(self._count):
            yield self._draw(generator)


def all_classes(masters: Masters, split: str, batch: int) -> Callable[[Generator], Batch]:
    """Draws batches for the base: all classes alike, mild effects; images (B, 32, 32) and table rows (B,)."""
    glyphs, labels, weights = masters.everything(split)

    def draw(generator: Generator) -> Batch:
        chosen = torch.multinomial(weights, batch, replacement=True, generator=generator)
        return images(glyphs[chosen], mild(batch, generator), generator), labels[chosen]

    return draw


def task_batches(masters: Masters, name: str, severity: float, batch: int) -> Callable[[Generator], Batch]:
    """Draws training batches of a task; images (B, 32, 32) and labels (B,)."""
    glyphs, labels = _source(masters, name, "training")

    def draw(generator: Generator) -> Batch:
        chosen = torch.randint(len(glyphs), (batch,), generator=generator)
        return _pictures(name, glyphs[chosen], severity, generator), labels[chosen]

    return draw


def fixed_set(masters: Masters, name: str, split: str, severity: float, count: int, seed: int) -> Batch:
    """At most `count` images of a split; real digits come once each, as they are, but for noise and grey levels."""
    generator = Generator().manual_seed(seed)
    glyphs, labels = _source(masters, name, split)
    if TASKS[name].real:
        return images(glyphs[:count], {}, generator, "dark", jitter=0.0), labels[:count]
    chosen = torch.randint(len(glyphs), (count,), generator=generator)
    return _pictures(name, glyphs[chosen], severity, generator), labels[chosen]


def _source(masters: Masters, name: str, split: str) -> Batch:
    """Masters (N, 48, 48) and labels (N,) of a task's split."""
    task = TASKS[name]
    return masters.digits(name, split) if task.real else masters.glyphs(task.script, split)


def _pictures(name: str, glyphs: Tensor, severity: float, generator: Generator) -> Tensor:
    """The task's effects times the severity, shares capped at 1; uint8 (B, 32, 32)."""
    task = TASKS[name]
    if task.real:
        return images(glyphs, {}, generator, task.background, jitter=0.6)
    strengths = {
        effect: min(strength * severity, 1.0) if effect in SHARES else strength * severity
        for effect, strength in task.effects.items()
    }
    return images(glyphs, strengths, generator, task.background)
