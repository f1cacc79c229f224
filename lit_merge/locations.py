"""Where files lie: ordinary paths, `zoo:8/…` for the files of the built-in suites, `hf://…` for the hub's models."""

import os
from pathlib import Path

from lit_merge import hub
from lit_merge.errors import MergeError

SHIPPED = Path(__file__).parent / "zoo" / "suite8"


def cache_folder() -> Path:
    """`$LIT_MERGE_CACHE`, or `~/.cache/lit_merge`."""
    return Path(os.environ.get("LIT_MERGE_CACHE") or Path.home() / ".cache" / "lit_merge")


def resolve(location: str | os.PathLike[str]) -> Path:
    """The path behind a location. `zoo:8` is the suite that the package ships; `zoo:14`, `zoo:20` and
    `zoo:8-seed1` are folders that scripts/build_zoo.py makes in the cache. `hf://org/name` is downloaded; see hub.py.

    Raises:
        MergeError: a suite that has not been built, a model that cannot be downloaded.
    """
    text = os.fspath(location)
    if text.startswith(hub.PREFIX):
        return hub.fetch(text)
    if not text.startswith("zoo:"):
        return Path(text).expanduser()
    suite, _, inside = text.removeprefix("zoo:").partition("/")
    if suite in ("8", "8-seed0"):
        return SHIPPED / inside
    tasks, _, seed = suite.partition("-seed")
    folder = cache_folder() / "zoo" / f"{tasks}-seed{seed or 0}"
    if not folder.is_dir():
        raise MergeError(
            f"{text}: this suite is not built (no folder {folder}): run "
            f"`python scripts/build_zoo.py --tasks {tasks} --seed {seed or 0}`, or take zoo:8, which is shipped"
        )
    return folder / inside
