"""Files of every kind that is read, changed with knowledge of their structure, against an independent reader."""

import resource
import shutil
import sys
from pathlib import Path

import numpy as np

from campaigns.forks import Ended, Process
from campaigns.readers import Arrays, Kind, kinds
from campaigns.trial import CLEAN, RIGHT, Campaign, Place, Result, failed

# Bytes that a reader may take: what a few bytes claim to be may be more than the machine has.
MOST = 16 << 30


class Mutations(Campaign):
    """A changed file is refused in one line, or read as the independent reader reads it. Where that one refuses it,
    what the package reads may be the file as it was."""

    name, light = "mutations", True
    share = 3.0

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(place, seed)
        self.kinds = self.all_kinds()
        self._whole: dict[str, Arrays] = {}

    @staticmethod
    def all_kinds() -> list[Kind]:
        return kinds()

    def trial(self, number: int) -> Result:
        kind, draw = self.kinds[number % len(self.kinds)], self.draw(number)
        whole = self.whole(kind)
        self._make(kind)
        file = draw.choice([*kind.files])
        about = f"{kind.name}, {kind.files[file](draw, self.place.work / file)}"
        ended, found, wanted = read(kind, self.place.work)
        if (self.place.work / "RAN").exists():
            return failed(about, "code in it was run")
        if ended.refused:
            return Result(CLEAN, about)
        if found is None:
            return failed(about, str(ended))
        if wanted is not None:
            wrong = unlike(found, wanted, kind.close)
            return failed(about, f"read otherwise: {wrong}") if wrong else Result(RIGHT, about)
        if wrong := unlike(found, whole, kind.close):
            return failed(about, f"read, which others do not ({ended}); {wrong}")
        return Result(RIGHT, about)

    def whole(self, kind: Kind) -> Arrays:
        """What the package reads of the file as it was, which others read too."""
        if kind.name not in self._whole:
            self._make(kind)
            ended, ours, theirs = read(kind, self.place.work)
            if ours is None or theirs is None or unlike(ours, theirs, kind.close):
                raise RuntimeError(f"{kind.name} is not read: {ended}")
            self._whole[kind.name] = ours
        return self._whole[kind.name]

    def _make(self, kind: Kind) -> None:
        kept, work = self.place.kept / f"kind {kind.name}", self.place.emptied()
        if not kept.exists():
            kept.mkdir()
            if (ended := Process(lambda: kind.make(self.place.inputs, kept)).end()).code:
                raise RuntimeError(f"{kind.name} cannot be written: {ended}")
        work.rmdir()
        shutil.copytree(kept, work)


def read(kind: Kind, folder: Path) -> tuple[Ended, Arrays | None, Arrays | None]:
    """What the package reads in a fork, then what the independent reader does; None where one refuses."""
    places = [folder / f"arrays{i}.npz" for i in range(2)]

    def work() -> int:
        from lit_merge import MergeError

        resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))
        try:
            save(places[0], kind.ours(folder))
        except MergeError as error:
            print(f"lit_merge: error: {error}", file=sys.stderr)
            return 2
        try:
            save(places[1], kind.theirs(folder))
        except Exception as error:
            print(f"the independent reader: {type(error).__name__}: {error}", file=sys.stderr)
        return 0

    ended = Process(work, folder).end()
    ours, theirs = (load(place) if place.exists() else None for place in places)
    # Where the first has answered, a death is the independent reader's.
    return ended, ours, theirs


def save(place: Path, arrays: Arrays) -> None:
    # Names of weights may be no names of files.
    np.savez(place, names=np.array([*arrays]), **{f"a{i}": one for i, one in enumerate(arrays.values())})


def load(place: Path) -> Arrays:
    with np.load(place) as held:
        return {str(name): held[f"a{i}"] for i, name in enumerate(held["names"])}


def unlike(found: Arrays, wanted: Arrays, close: float) -> str:
    """The first difference; nothing where there is none."""
    if found.keys() != wanted.keys():
        return f"{sorted(found.keys() ^ wanted.keys())[:3]} is in one of them only"
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            return f"{name} has the shape {found[name].shape} and not {value.shape}"
        if value.dtype.kind in "US":
            if (found[name] != value).any():
                return f"{name} is {found[name].tolist()} and not {value.tolist()}"
            continue
        with np.errstate(all="ignore"):
            off = np.abs(found[name].astype(float) - value).max(initial=0.0)
            # The smallest number of float32 is its rounding near 0.
            if not off <= close * np.abs(value).max(initial=0.0) + 2.0**-149:
                return f"{name} is off by {off}"
    return ""
