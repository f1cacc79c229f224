"""From rows of text to four disjoint splits: groups are kept together, classes drawn evenly."""

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, zip_longest

# Share of the groups, and how many texts are taken at most.
SPLITS = {"train": (0.62, 2400), "validation": (0.10, 400), "pool": (0.13, 480), "test": (0.15, 600)}


@dataclass(frozen=True)
class Text:
    """One example. Texts of one `group` never come apart: they would give each other away."""

    text: str
    label: str
    group: str


@dataclass(frozen=True)
class Examples:
    """A task: its classes, and per split (text, number of the class)."""

    classes: list[str]
    splits: dict[str, list[tuple[str, int]]] = field(default_factory=dict)


def plain(text: str) -> str:
    """What two texts must not share: letters only, in lower case.

    >>> plain("Saint-Denis (93)")
    'saint denis'
    """
    return re.sub(r"[\W\d_]+", " ", text.lower()).strip()


def split_of(task: str, group: str) -> str:
    """Decided by a hash: the same wherever and whenever it is asked."""
    place = int(hashlib.md5(f"{task}/{group}".encode()).hexdigest(), 16) / 2**128
    for split, (share, _) in SPLITS.items():
        if place < share:
            return split
        place -= share
    return "test"


def make_splits(task: str, rows: Iterable[Text], train: int, least: int) -> Examples:
    """Unique texts, as even over the classes as the source allows.

    Args:
        task: its name.
        rows: all texts of the source.
        train: texts for training, at most.
        least: classes with fewer texts are left out.
    """
    shuffled = random.Random(0)
    rows = list(rows)
    shuffled.shuffle(rows)
    seen: set[str] = set()
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        text, key = re.sub(r"\s+", " ", row.text).strip(), plain(row.text)
        if key and key not in seen:
            seen.add(key)
            found[row.label][split_of(task, row.group)].append(text)
    examples = Examples(sorted(label for label, parts in found.items() if sum(map(len, parts.values())) >= least))
    for split, (_, most) in SPLITS.items():
        columns = [[(text, i) for text in found[label][split][::-1]] for i, label in enumerate(examples.classes)]
        taken = [one for one in chain.from_iterable(zip_longest(*columns)) if one is not None]
        taken = taken[: train if split == "train" else most]
        shuffled.shuffle(taken)
        examples.splits[split] = taken
    return examples
