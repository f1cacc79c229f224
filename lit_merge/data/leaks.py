"""Leaks: test images that stand among the images adapted on, found by their content."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from lit_merge.data.class_names import MIXED
from lit_merge.data.streams import ImageSource

OnLeak = Literal["warn", "refuse", "ignore"]


@dataclass(frozen=True)
class Leak:
    """Test images of a task that are adapted on too.

    Args:
        task: whose test images.
        count: how many of them.
        images: how many test images the task has.
        tested: the first of them.
        adapted: the image adapted on that is the same.
    """

    task: str
    count: int
    images: int
    tested: str
    adapted: str

    def __str__(self) -> str:
        return (
            f"{self.count} of the {self.images} test images of task {self.task} stand among the images adapted on, the "
            f"first is {self.tested}, which is {self.adapted} there"
        )


def find_leaks(
    adapted: Mapping[str, ImageSource], tested: Mapping[str, ImageSource], pixels: bool = False
) -> list[Leak]:
    """Tasks with test images that are adapted on.

    Args:
        adapted: task, or `mixed` → images adapted on.
        tested: task → test images.
        pixels: compare decoded images at full size: finds copies in files of other formats too, and decodes all.
            Otherwise contents of files are compared, of which only those of equal length are read.

    Raises:
        MergeError: an image that cannot be read.
    """
    found = []
    for task, tests in tested.items():
        source = adapted.get(task, adapted.get(MIXED))
        pairs = [] if source is None else copies(source, tests, pixels)
        if source is not None and pairs:
            known, test = pairs[0]
            found.append(Leak(task, len(pairs), len(tests), tests.label(test), source.label(known)))
    return found


def copies(adapted: ImageSource, tested: ImageSource, pixels: bool = False) -> list[tuple[int, int]]:
    """(place among those adapted on, place among those tested on) of every tested image that is adapted on too."""
    if pixels:
        first, second = range(len(adapted)), range(len(tested))
        return _equal(adapted.pixels, tested.pixels, first, second)
    lengths, others = adapted.lengths(), tested.lengths()
    # Empty files are no images.
    shared = (set(lengths) & set(others)) - {0}
    places = [[i for i, length in enumerate(one) if length in shared] for one in (lengths, others)]
    return _equal(adapted.content, tested.content, *places)


def _equal(
    of: Callable[[int], bytes], other: Callable[[int], bytes], places: "list[int] | range", others: "list[int] | range"
) -> list[tuple[int, int]]:
    # The last place is written first: of several copies the first one is reported.
    known = {_digest(of(i)): i for i in reversed(places)}
    found = ((known.get(_digest(other(i))), i) for i in others)
    return [(place, i) for place, i in found if place is not None]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
