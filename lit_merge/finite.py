"""No option is NaN or infinite: what it would do to a merge shows too late, or never."""

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

from lit_merge.errors import MergeError


class Finite:
    """Base of dataclasses of options; those with a `__post_init__` of their own call this one first."""

    def __post_init__(self) -> None:
        """Raises MergeError where a number is NaN or infinite."""
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
