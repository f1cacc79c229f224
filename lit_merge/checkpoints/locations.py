"""Where files lie: paths with `~` and variables, `zoo:8/…` for the built-in suites, `hf://…` for the hub's models."""

import os
import re
from pathlib import Path

from lit_merge.checkpoints import hub
from lit_merge.checkpoints.inputs import reads
from lit_merge.errors import MergeError

SHIPPED = Path(__file__).parents[1] / "zoo" / "suite8"


# As far as the part of a path that a variable is in, and the variable.
_VARIABLE = re.compile(r"([^$]*(\$(?:[A-Za-z_]\w*|\{\w+\}))[^/]*)")


def cache_folder() -> Path:
    """`$LIT_MERGE_CACHE`, or `~/.cache/lit_merge`."""
    return expanded(os.environ.get("LIT_MERGE_CACHE") or "~/.cache/lit_merge")


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path whose `~`, `~user` and `$VARIABLE` are what they stand for.

    Raises:
        MergeError: no such user; a variable that is not set, unless that is the name of a file or folder.
    """
    found = os.path.expandvars(os.fspath(path))
    if (left := _VARIABLE.match(found)) and not os.path.lexists(left[1]):
        raise MergeError(f"{found}: the variable {left[2]} is not set")
    try:
        return Path(found).expanduser()
    except RuntimeError as error:
        name = found.partition("/")[0]
        raise MergeError(f"{found}: there is no home folder {name}; ./{name} is a folder of that name") from error


def destination(location: str | os.PathLike[str]) -> Path:
    """The path that an output is written to, by the rules of inputs.

    Raises:
        MergeError: no such user; a place that only inputs have.
    """
    text = os.fspath(location)
    if text.startswith((hub.PREFIX, "zoo:")):
        raise MergeError(f"{text} can only be read: choose a path to write to")
    return expanded(text)


def resolve(location: str | os.PathLike[str]) -> Path:
    """The path behind a location. `zoo:8` is the suite that the package ships; `zoo:14`, `zoo:20` and
    `zoo:8-seed1` are folders that scripts/build_zoo.py makes in the cache. `hf://org/name` is downloaded; see hub.py.

    Raises:
        MergeError: a suite that has not been built, a model that cannot be downloaded, what the command writes over.
    """
    return reads(_found(location))


def _found(location: str | os.PathLike[str]) -> Path:
    text = os.fspath(location)
    if text.startswith(hub.PREFIX):
        return hub.fetch(text)
    if not text.startswith("zoo:"):
        return expanded(text)
    suite, _, inside = text.removeprefix("zoo:").partition("/")
    if suite in ("8", "8-seed0"):
        return SHIPPED / inside
    tasks, _, seed = suite.partition("-seed")
    folder = cache_folder() / "zoo" / f"{tasks}-seed{seed or 0}"
    if tasks not in ("8", "14", "20") or not (seed or "0").isdecimal():
        raise MergeError(
            f"{text}: there is no such suite: zoo:8 is shipped, zoo:14 and zoo:20 are built by python "
            "scripts/build_zoo.py, as is zoo:8-seed1 of other experts"
        )
    if not folder.is_dir():
        raise MergeError(
            f"{text}: this suite is not built (no folder {folder}): run "
            f"`python scripts/build_zoo.py --tasks {tasks} --seed {seed or 0}`, or take zoo:8, which is shipped"
        )
    return folder / inside
