"""What a campaign is: trials, each drawn by a seed and its number, so that one alone can be made again."""

import random
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

CLEAN, RIGHT, FAILED = "clean", "right", "failed"


@dataclass(frozen=True)
class Result:
    """What came of a trial.

    Attributes:
        verdict: CLEAN (refused in one line, exit code 2, nothing changed), RIGHT (the result equals the independent
            value), or FAILED.
        about: what was done, and what was wrong.
        count: of the results that were looked at, where one trial has several.
    """

    verdict: str
    about: str
    count: int = 1


@dataclass(frozen=True)
class Place:
    """Folders of all trials.

    Attributes:
        inputs: what `write_inputs` wrote, which nothing changes.
        work: where a trial runs; the next one empties it.
        kept: what campaigns keep between their trials.
    """

    root: Path

    @property
    def inputs(self) -> Path:
        return self.root / "inputs"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def kept(self) -> Path:
        return self.root / "kept"

    def emptied(self) -> Path:
        """`work`, with nothing in it."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        return self.work


class Campaign(ABC):
    """Trials of one kind.

    Args:
        place: where they run.
        seed: draws them.

    Attributes:
        name: for `--only`.
        share: of the time that all campaigns have.
        light: whether it does without Lightning and networks: forks of a small process are faster.
        holds: whether it has the kernel hold system calls, which not every machine offers.
    """

    name: ClassVar[str]
    share: ClassVar[float] = 1.0
    light: ClassVar[bool] = False
    holds: ClassVar[bool] = False

    def __init__(self, place: Place, seed: int) -> None:
        self.place, self.seed = place, seed

    def draw(self, number: int) -> random.Random:
        """Randomness of a trial."""
        return random.Random(f"{self.seed} {self.name} {number}")

    def seconds(self, number: int) -> float:
        """How long a trial takes that is not short: it is not begun where less time is left."""
        return 0.0

    @abstractmethod
    def trial(self, number: int) -> Result:
        """Makes one trial."""


def failed(about: str, wrong: str) -> Result:
    return Result(FAILED, f"{about}: {wrong}")
