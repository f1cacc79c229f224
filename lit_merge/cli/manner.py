"""The options `--quiet` and `--log`: how a verb tells what it does."""

from collections.abc import Sequence

from lit_merge.console import Manner, use_manner
from lit_merge.errors import MergeError

# Verbs that take them: those that read a configuration.
TAKEN = ("fit", "validate", "test", "predict", "merge", "export", "sweep")
KINDS = ("text", "json")
QUIET = "results, warnings and errors only: no progress, no notes"
LOG = "text, or json: every line on standard output is an object with its kind as `event`"


def settle_manner(verb: str, arguments: Sequence[str]) -> list[str]:
    """Takes `--quiet` and `--log KIND` out of the arguments, for the verbs that have them.

    Raises:
        MergeError: another kind.
    """
    use_manner(Manner())
    if verb not in TAKEN:
        return list(arguments)
    rest, quiet, kind = [], False, "text"
    given = iter(arguments)
    for argument in given:
        name, separator, value = argument.partition("=")
        if argument == "--quiet":
            quiet = True
        elif name == "--log":
            kind = value if separator else next(given, "")
        else:
            rest.append(argument)
    if kind not in KINDS:
        raise MergeError(f"--log {kind}: expected {' or '.join(KINDS)}")
    use_manner(Manner(quiet, kind == "json"))
    return rest
