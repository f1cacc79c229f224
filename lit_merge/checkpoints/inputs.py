"""What a command reads and where it writes: no output is, holds or lies above an input, whichever is known first."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lit_merge.errors import MergeError


@dataclass
class Command:
    """Inputs and outputs of one command, as they become known.

    Attributes:
        read: files and folders, and whether all that lies in them is read.
        written: places of outputs, and what each is for.
    """

    read: dict[Path, bool] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)


_now: Command | None = None


@contextmanager
def one_command() -> Iterator[None]:
    """Inside, `reads`, `lists` and `writes` know of each other."""
    global _now
    before, _now = _now, Command()
    try:
        yield
    finally:
        _now = before


def reads(path: Path) -> Path:
    """Notes an input, and answers its path. Raises MergeError where the command writes over it."""
    return _note(path, False)


def lists(path: Path) -> Path:
    """Notes a folder in which everything counts. Raises MergeError where the command writes over it, or into it."""
    return _note(path, True)


def writes(path: Path, what: str = "output") -> None:
    """Notes an output. Raises MergeError where it is, holds or lies above an input, or lies in a folder of inputs, or
    where another output lies in it or above it, or is to stand there for something else."""
    check_apart(path)
    if _now is None:
        return
    place = Path(os.path.realpath(path))
    for other, known in _now.written.items():
        if place == other and what != known:
            raise MergeError(f"{path} is named for the {known} and for the {what}: choose another place")
        if place != other and (place.is_relative_to(other) or other.is_relative_to(place)):
            inner, outer = sorted((place, other), key=lambda one: -len(one.parts))
            raise MergeError(f"{inner} lies in {outer}, which is replaced as a whole: choose another place")
    _now.written[place] = what


def check_apart(output: Path, inputs: Iterable[Path] = ()) -> None:
    """Raises MergeError where an output is, holds or lies above one of these inputs, or one of the command's."""
    places = _names(output)
    for path in inputs:
        _check(output, places, path, False)
    for path, listed in () if _now is None else _now.read.items():
        _check(output, places, path, listed)


def _note(path: Path, listed: bool) -> Path:
    if _now is not None and not _now.read.get(path, False) and os.path.exists(path):
        _now.read[path] = _now.read.get(path, False) or listed
        for output in _now.written:
            _check(output, _names(output), path, listed)
    return path


def _check(output: Path, places: set[Path], path: Path, listed: bool) -> None:
    names = _names(path)
    for place in places:
        for one in names:
            if one.is_relative_to(place):
                what = "is read" if one == place else f"holds {path}, which is read"
                raise MergeError(f"{output} {what}, and would be replaced: choose another place for the output")
            if listed and place.is_relative_to(one):
                raise MergeError(
                    f"{output} lies in {path}, all of which is read: the next run would take it for an input; choose "
                    "another place"
                )
    with suppress(OSError):
        if os.path.samestat(output.stat(), path.stat()):
            raise MergeError(f"{output} is {path}, which is read, and would be replaced: choose another place")


def _names(path: Path) -> set[Path]:
    """Where a path lies by itself, and where it leads."""
    return {Path(os.path.realpath(path.parent), path.name), Path(os.path.realpath(path))}
