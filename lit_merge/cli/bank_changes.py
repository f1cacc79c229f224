"""The commands `bank add`, `bank remove` and `bank rename`: a bank with other tasks, without its experts."""

import argparse
from collections.abc import Sequence

from lit_merge.bank.files import BANK
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import check_output
from lit_merge.checkpoints.locations import destination
from lit_merge.cli.command_parser import CommandParser
from lit_merge.cli.written_output import say_written
from lit_merge.console import terminal
from lit_merge.merge.growth.tasks import add_task, remove_task, rename_task

ADD = """\
Writes a bank with one more task. Exact for TaskArithmetic, TSVCompress and WeightAveraging; for CART, whose mean moves,
exact in the origin, and the other deltas are recentred. Other methods make the deltas of all tasks together.
"""
REMOVE = """\
Writes a bank without one of its tasks: see `bank add`. With the task's expert CART's new mean is exact, too.
"""
RENAME = "Writes a bank with another name for one of its tasks."
RESET = "put the coefficients back to the method's scale, and forget what a fit has learnt"


def add(arguments: Sequence[str]) -> None:
    """Parses, adds a task and writes the bank.

    Raises:
        MergeError: anything that the user can mend.
    """
    parser = _parser("add", ADD)
    parser.add_argument("--expert", required=True, help="checkpoint of the new task, of any format")
    parser.add_argument("--base", help="the pretrained checkpoint, which a LoRA expert needs")
    parser.add_argument("--exclude", nargs="*", default=[], help="shell patterns of weights that are not merged")
    parser.add_argument("--reset", action="store_true", help=RESET)
    options = parser.parse_args(arguments)
    bank, output = _opened(options)
    about = {"base": options.base, "exclude": options.exclude, "reset": options.reset}
    change = add_task(bank, options.task, options.expert, **about)
    _write(change.bank, output, options, f"{options.task} added: {change.note}")


def remove(arguments: Sequence[str]) -> None:
    """Parses, removes a task and writes the bank.

    Raises:
        MergeError: anything that the user can mend.
    """
    parser = _parser("remove", REMOVE)
    parser.add_argument("--expert", help="checkpoint of the task that goes, where it is at hand")
    parser.add_argument("--reset", action="store_true", help=RESET)
    options = parser.parse_args(arguments)
    bank, output = _opened(options)
    change = remove_task(bank, options.task, expert=options.expert, reset=options.reset)
    _write(change.bank, output, options, f"{options.task} removed: {change.note}")


def rename(arguments: Sequence[str]) -> None:
    """Parses, renames a task and writes the bank.

    Raises:
        MergeError: anything that the user can mend.
    """
    parser = _parser("rename", RENAME)
    parser.add_argument("--to", required=True, help="its new name")
    options = parser.parse_args(arguments)
    bank, output = _opened(options)
    _write(rename_task(bank, options.task, options.to), output, options, f"{options.task} is {options.to} now")


def _parser(command: str, about: str) -> CommandParser:
    parser = CommandParser(f"bank {command}", about)
    parser.add_argument("--bank", required=True, help="folder of the bank, which stays as it is")
    parser.add_argument("--task", required=True, help="name of the task")
    parser.add_argument("--output", required=True, help="folder of the new bank")
    parser.add_argument("--overwrite", action="store_true", help="replace a bank that stands there")
    return parser


def _opened(options: argparse.Namespace) -> tuple[TaskBank, str]:
    output = str(destination(options.output))
    bank = TaskBank.load(options.bank)
    check_output(output, options.overwrite, BANK)
    return bank, output


def _write(bank: TaskBank, output: str, options: argparse.Namespace, said: str) -> None:
    bank.save(output, options.overwrite)
    terminal().print(f"{said}; tasks now: {', '.join(bank.tasks)}", soft_wrap=True, highlight=False)
    say_written(output)
