"""Options that were left empty, as `batch_size:` with nothing behind it in YAML: parsers take that for any type."""

import inspect
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

from lit_merge.cli.parse_errors import imported
from lit_merge.errors import MergeError


def refuse_empty(parser: ArgumentParser, options: Namespace) -> None:
    """Raises MergeError for an option that is empty and has to have a value, as its type and default say."""
    for action in parser._actions:
        if action.dest not in options:
            continue
        value, kind = options[action.dest], getattr(action, "_typehint", None)
        # Without a seed is what Lightning's own configurations say so.
        needed = action.default is not None and action.dest != "seed_everything"
        if value is None and needed and not _takes_none(kind):
            raise _empty(action.dest, kind)
        for name, asked in _inside(action.dest, value):
            raise _empty(name, asked)


def _inside(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Empty options of the classes in a value, with the types that they have."""
    if isinstance(value, list):
        for one in value:
            yield from _inside(place, one)
    if not isinstance(value, Namespace) or not isinstance(value.get("class_path"), str):
        return
    asked = inspect.signature(imported(value["class_path"])).parameters
    for name, given in vars(value.get("init_args") or Namespace()).items():
        one = asked.get(name)
        if given is None and one is not None and one.default is not None and not _takes_none(one.annotation):
            yield f"{place}.{name}", one.annotation
        yield from _inside(f"{place}.{name}", given)


def _takes_none(kind: Any) -> bool:
    return kind in (None, Any, inspect.Parameter.empty, type(None)) or type(None) in get_args(kind)


def _empty(name: str, kind: Any) -> MergeError:
    return MergeError(f"{name} is empty: expected {_spelled(kind)}; or leave it out")


def _spelled(kind: Any) -> str:
    """A type in words.

    >>> _spelled(float | Literal["entropy"])
    "float or 'entropy'"
    """
    if get_origin(kind) is Literal:
        return " or ".join(repr(value) for value in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_spelled(one) for one in get_args(kind))
    return kind.__name__ if isinstance(kind, type) else str(kind)
