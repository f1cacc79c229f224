"""The configurations that the package ships, by name: `--config quickstart`, from any folder."""

from collections.abc import Sequence
from pathlib import Path

from lit_merge.cli.parse_errors import nearest
from lit_merge.errors import MergeError

PACKAGE = Path(__file__).parents[1]
# In a wheel they lie in the package, in a clone next to it.
PLACES = (PACKAGE / "configs", PACKAGE.parent / "configs")
OPTIONS = ("--config", "-c")


def with_shipped(arguments: Sequence[str]) -> list[str]:
    """Arguments of a verb in which names of shipped configurations are their paths. Files of the user's come first.

    Raises:
        MergeError: a name without a suffix that is neither a file nor shipped.
    """
    found = list(arguments)
    for i, argument in enumerate(found):
        option, separator, value = argument.partition("=")
        if separator and option in OPTIONS:
            found[i] = f"{option}={_path(value)}"
        elif i and found[i - 1] in OPTIONS:
            found[i] = _path(argument)
    return found


def shipped() -> dict[str, Path]:
    """Name → file: `cart`, `clip-vit-b-32/8`, …"""
    folder = next((one for one in PLACES if (one / "quickstart.yaml").is_file()), PLACES[0])
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def _path(given: str) -> str:
    """The file that is meant: the user's own, or a shipped one of this name."""
    # Text of several lines, or in braces, is a configuration itself.
    if Path(given).suffix or not given or set(given) & set("\n{}:~$") or Path(given).exists():
        return given
    known = shipped()
    if given not in known:
        raise MergeError(
            f"{given}: no such configuration file, nor one that the package ships{nearest(given, list(known))}: "
            f"give a path, or one of {', '.join(name for name in known if '/' not in name)}"
        )
    return str(known[given])
