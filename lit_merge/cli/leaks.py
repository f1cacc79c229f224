"""The verb `leaks`: whether test images of a configuration's data stand among the images adapted on."""

from argparse import SUPPRESS
from collections.abc import Sequence
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from lit_merge.cli.parsing import parser_of, parsing
from lit_merge.console import terminal
from lit_merge.data import TaskData, only_read
from lit_merge.errors import MergeError, check_finite

ABOUT = (
    "Compares the test images of a configuration's data with the images adapted on, task by task. Of a file written "
    "for fit it takes data; no network is built. Exit code 2 where an image stands in both."
)
# What the other verbs take from a configuration: allowed, so that one file serves every verb.
UNUSED = ("seed_everything", "trainer", "model", "run", "output", "overwrite", "ckpt_path", "weights_only")


def parser() -> ArgumentParser:
    made = parser_of("leaks", ABOUT)
    made.add_subclass_arguments(TaskData, "data", required=True)
    made.add_argument(
        "--pixels", action=ActionYesNo, help="compare decoded images, not files: finds converted copies, and is slow"
    )
    for name in UNUSED:
        made.add_argument(f"--{name}", type=Any, help=SUPPRESS)
    return made


def leaks_command(arguments: Sequence[str]) -> None:
    """Parses, compares and says what was found.

    Raises:
        MergeError: a leak; data whose test images are adapted on by intent; anything else that the user can mend.
    """
    made, only = parser(), ArgumentParser(exit_on_error=False)
    # Apart from the rest, of which nothing is to be built.
    only.add_subclass_arguments(TaskData, "data")
    with parsing(arguments, lambda: [action.dest for action in made._actions]):
        options = made.parse_args(list(arguments))
        check_finite({"data": options.data.as_dict()})
        with only_read():
            data: TaskData = only.instantiate_classes(Namespace(data=options.data)).data
    if not data.has_test:
        raise MergeError("the data has no test images to look for")
    if not data.inductive:
        raise MergeError(f"nothing to find: this data is {data.protocol}")
    found = data.leaks(options.pixels)
    if found:
        raise MergeError("; ".join(map(str, found)))
    compared = "decoded images" if options.pixels else "contents of files"
    terminal().print(f"No test image of {', '.join(data.tasks)} is adapted on ({compared}).", soft_wrap=True)
