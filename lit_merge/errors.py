"""Errors and warnings that a user can act on, and checks of options: that none is NaN, infinite, or an unknown word."""

import math
import signal
from collections.abc import Iterator
from dataclasses import MISSING, fields
from numbers import Real
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


class MergeError(ValueError):
    """A mistake that the user can mend, in one line: what is wrong, where, what was expected, what to do.

    The command line prints the line and exits with 2. From Python, `task` and `weight` hold the names that the
    message speaks of, where there are any.
    """

    def __init__(self, message: str, *, task: str | None = None, weight: str | None = None) -> None:
        # Names of files need not be text; what is printed and written must.
        super().__init__(" ".join(message.split()).encode("utf-8", "backslashreplace").decode())
        self.task = task
        self.weight = weight


class MisfitError(MergeError):
    """Experts that do not fit together. The message is of the first difference; `all` holds every one."""

    def __init__(self, differences: list[MergeError]) -> None:
        first = differences[0]
        super().__init__(str(first), task=first.task, weight=first.weight)
        self.all = differences


class DiedError(MergeError):
    """One of several processes ended without saying why.

    Args:
        rank: of the process, from 0.
        count: of all.
        code: exit code, or minus the signal's number; None where it is not known.
        tail: what follows in the line.
    """

    def __init__(self, rank: int, count: int, code: int | None, tail: str = "") -> None:
        how = "died" if code is None else f"ended with code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        super().__init__(f"process {rank + 1} of {count} {how}{tail}")
        self.rank, self.count, self.code = rank, count, code


class MergeWarning(UserWarning):
    """Something that is allowed but probably not meant."""


def first_line(error: BaseException) -> str:
    """What another library's error says first; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class Finite:
    """Base of dataclasses of options; those with a `__post_init__` of their own call this one first."""

    def __post_init__(self) -> None:
        """Raises MergeError for a number that is NaN or infinite, a word that an option does not take, and None where a
        value is needed."""
        for one in fields(self):  # type: ignore[arg-type]
            check_choice(f"{type(self).__name__}: {one.name}", getattr(self, one.name), one.type)
            takes_none = one.default is None or type(None) in get_args(one.type)
            if getattr(self, one.name) is None and not takes_none:
                example = "" if one.default is MISSING else f", as {one.default}"
                raise MergeError(f"{type(self).__name__}: {one.name} is empty: expected a value{example}")
        check_finite(vars(self), type(self).__name__)


def check_finite(options: dict[str, Any], owner: str = "") -> None:
    """Raises MergeError where a number among options, or in lists and mappings in them, is NaN or infinite.

    Args:
        options: name → value.
        owner: what they are options of, for the message.
    """
    for name, value in _numbers(options, ""):
        if not math.isfinite(value):
            raise MergeError(f"{owner}{': ' if owner else ''}{name}={value}: expected a finite number")


def check_choice(name: str, value: Any, kind: Any) -> None:
    """Raises MergeError for a word that an option does not take.

    Args:
        name: of the option.
        value: other than text passes.
        kind: a Literal, or a union of one with types other than text; others pass.
    """
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = [f"{word}" for part in parts if get_origin(part) is Literal for word in get_args(part)]
    if isinstance(value, str) and words and str not in parts and value not in words:
        *first, last = words
        expected = f"{', '.join(first)} or {last}" if first else last
        raise MergeError(f"{name}={value!r}: expected {expected}")


def check_between(name: str, value: Any, least: int, most: int) -> None:
    """Raises MergeError for a number of an option that is below `least` or above `most`; other values pass."""
    if isinstance(value, int | float) and not isinstance(value, bool) and not least <= value <= most:
        raise MergeError(f"{name}={value}: expected a number from {least} to {most}")


def _numbers(value: Any, name: str) -> Iterator[tuple[str, Real]]:
    """The numbers of nested options and their names, as `method.scaling` and `bounds[1]`."""
    # Plain ones only: others may read their values from files.
    if isinstance(value, dict):
        for key, one in value.items():
            # Between a class and its options in a configuration, and left out on the command line.
            path = name if key == "init_args" else f"{name}.{key}" if name else f"{key}"
            yield from _numbers(one, path)
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            yield from _numbers(one, f"{name}[{i}]")
    elif isinstance(value, Real) and not isinstance(value, int):
        yield name, value
