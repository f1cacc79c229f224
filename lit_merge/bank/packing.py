"""What lies where in the file of a compressed bank (format version 3).

Deltas are directions, as many for every task as the task needs: of each type those of all tasks lie one after the
other. A weight of another number of axes than two is one of rows (its first axis) and columns; a vector is one row.

- `origin/NAME`: the origin, in a floating-point type, in integers of its own, or as int8 with `scale/NAME`.
- `S/NAME` (directions): singular values, task after task, in each of them type after type.
- `U/TYPE/NAME` (directions, m) and `V/TYPE/NAME` (directions, n): task after task. What has one row has no U, what has
  one column of several rows no V.

Where the origin is a difference from a base, the first of the tasks is that difference, and there is no `origin/NAME`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lit_merge.bank.storage_types import TYPES

BASE = "base"
INTEGERS = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool)
}

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Packed:
    """One weight of a compressed bank.

    Attributes:
        shape: of the weight.
        origin: name of the type that its origin is stored in; `base`; or, of integers, their own.
        ranks: type → number of directions of every task, from fine types to coarse ones; of the origin first, where
            that is a difference from a base. Empty where all is in the origin.
    """

    shape: tuple[int, ...]
    origin: str
    ranks: Mapping[str, tuple[int, ...]]

    @property
    def sides(self) -> tuple[int, int]:
        """(m, n) of the weight as a matrix."""
        return sides_of(self.shape)

    @property
    def low_rank(self) -> bool:
        """Whether its deltas are matrices of low rank in the bank; all others are whole again once they are read."""
        return len(self.shape) == 2 and min(self.shape) > 1

    @property
    def rows(self) -> range:
        """Of the deltas among `ranks`."""
        return range(self.origin == BASE, max(map(len, self.ranks.values()), default=0))

    def counts(self, row: int) -> dict[str, tuple[int, int]]:
        """Type → where the directions of this row begin, and how many they are."""
        return {name: (sum(ranks[:row]), ranks[row]) for name, ranks in self.ranks.items()}

    def rank(self, row: int) -> int:
        """Number of directions of this row."""
        return sum(ranks[row] for ranks in self.ranks.values())

    def nbytes(self, row: int) -> int:
        """Bytes of the directions of this row."""
        sides = dict(zip("UV", self.sides, strict=True))
        counts = [sides[side] for side in sides_stored(*self.sides)]
        return sum(ranks[row] * (4 + sum(map(TYPES[kind].nbytes, counts))) for kind, ranks in self.ranks.items())

    @property
    def largest_rank(self) -> int:
        """Of the deltas; where there is none, a direction of 0 stands in its place."""
        return max(map(self.rank, self.rows), default=0) or 1

    def layout(self, name: str) -> Layout:
        """Shapes and dtypes of its tensors in the file."""
        found: Layout = {}
        m, n = self.sides
        if self.origin in TYPES:
            found[f"origin/{name}"] = self.shape, TYPES[self.origin].dtype
            if self.origin == "int8":
                found[f"scale/{name}"] = self.shape[:1], torch.bfloat16
        elif self.origin != BASE:
            found[f"origin/{name}"] = self.shape, INTEGERS[self.origin]
        if self.ranks:
            found[f"S/{name}"] = (sum(map(sum, self.ranks.values())),), torch.float32
        for kind, ranks in self.ranks.items():
            stored = TYPES[kind]
            for side, count in (("U", m), ("V", n)):
                if side in sides_stored(m, n):
                    found[f"{side}/{kind}/{name}"] = (sum(ranks), stored.width(count)), stored.dtype
        return found

    def describe(self) -> dict[str, str]:
        """For a bank's description."""
        ranks = {name: " ".join(map(str, ranks)) for name, ranks in self.ranks.items()}
        return {"shape": " ".join(map(str, self.shape)), "origin": self.origin} | ranks

    @classmethod
    def parse(cls, about: Mapping[str, str], rows: int) -> "Packed":
        """What `describe` answered.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: it is something else.
        """
        shape = tuple(int(part) for part in about["shape"].split())
        ranks = {name: tuple(int(part) for part in about[name].split()) for name in TYPES if name in about}
        unknown = about.keys() - {"shape", "origin", *TYPES}
        if unknown or any(len(one) != rows or min(one) < 0 for one in ranks.values()) or min(shape, default=0) < 0:
            raise ValueError(f"{about}")
        if about["origin"] not in {*TYPES, *INTEGERS, BASE}:
            raise ValueError(about["origin"])
        return cls(shape, about["origin"], ranks)


def sides_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """(m, n) of a weight as a matrix: rows are what the first axis counts; a vector is one row.

    >>> sides_of((256, 3, 8, 8)), sides_of((256,)), sides_of(())
    ((256, 192), (1, 256), (1, 1))
    """
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def sides_stored(m: int, n: int) -> str:
    """Which singular vectors of an (m, n) matrix say anything: `U`, `V` or both."""
    return ("U" if m > 1 else "") + ("V" if n > 1 or m == 1 else "")
