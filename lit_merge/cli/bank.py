"""The verb `bank`: commands on saved task banks, without the experts that they were made of."""

import difflib
from collections.abc import Sequence
from importlib import import_module

from lit_merge.errors import MergeError

# Command → what it does, the module of its function, and the function.
COMMANDS = {
    "diff": ("compare two banks: tasks, weights, ranks, λ, and how far their weights are apart", "bank_diff", "diff"),
    "add": ("one more task", "bank_changes", "add"),
    "remove": ("one task less", "bank_changes", "remove"),
    "rename": ("another name for a task", "bank_changes", "rename"),
    "push": ("send a bank to the Hugging Face hub", "bank_exchange", "push"),
    "pull": ("copy a bank from the hub into a folder", "bank_exchange", "pull"),
}
HELP = f"""\
usage: lit-merge bank COMMAND …

Works on saved task banks, without the experts that they were made of.

commands:
{chr(10).join(f"  {name:8s} {text}" for name, (text, *_) in COMMANDS.items())}

`lit-merge bank COMMAND --help` lists a command's options.
"""


def bank_command(arguments: Sequence[str]) -> None:
    """Runs one of the commands.

    Raises:
        MergeError: no such command; what the command says.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0)[0]
        raise MergeError(f"bank: no command {name!r}; the nearest is {near}; `lit-merge bank --help` lists them")
    _, module, function = COMMANDS[name]
    getattr(import_module(f"lit_merge.cli.{module}"), function)(rest)
