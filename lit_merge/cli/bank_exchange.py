"""The commands `bank push` and `bank pull`: banks to and from the Hugging Face hub."""

from collections.abc import Sequence

from lit_merge.bank.exchange import check_bank, pull_bank, push_bank
from lit_merge.cli.command_parser import CommandParser
from lit_merge.cli.written_output import say_folder
from lit_merge.console import note
from lit_merge.report.weight_tree import megabytes

PUSH = """\
Sends a saved bank to a repository of the Hugging Face hub in one commit, once every tensor has been checked. A
repository that is not there is made. Needs a token that may write: `hf auth login`.
"""
PULL = """\
Copies a bank from the Hugging Face hub into a folder, once every tensor has been checked. Commands that read a bank
take hf://org/name as it is, without this.
"""
BASE = "where the base is, of a bank that is stored as a difference from one"


def push(arguments: Sequence[str]) -> None:
    """Parses, checks the bank and sends it.

    Raises:
        MergeError: anything that the user can mend.
    """
    parser = CommandParser("bank push", PUSH)
    parser.add_argument("--bank", required=True, help="folder of the bank")
    parser.add_argument("--to", required=True, metavar="hf://org/name", help="the repository")
    parser.add_argument("--base", help=BASE)
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--overwrite", action="store_true", help="replace a bank that is there; the hub keeps it, too")
    parser.add_argument("--dry-run", action="store_true", help="check the bank, and say what would be sent")
    options = parser.parse_args(arguments)
    if options.dry_run:
        files = [f"{file.name} ({megabytes(file.stat().st_size)})" for file in check_bank(options.bank, options.base)]
        note(f"Would be sent to {options.to}: {', '.join(files)}", "dry_run", {"to": options.to, "files": files})
        return
    about = {"base": options.base, "private": options.private, "message": options.message}
    address = push_bank(options.bank, options.to, overwrite=options.overwrite, **about)
    note(f"Sent to {options.to}: {address}", "sent", {"to": options.to, "commit": address})


def pull(arguments: Sequence[str]) -> None:
    """Parses, copies the bank and checks it.

    Raises:
        MergeError: anything that the user can mend.
    """
    parser = CommandParser("bank pull", PULL)
    parser.add_argument("bank", metavar="hf://org/name", help="the repository, or a folder in it")
    parser.add_argument("--output", required=True, help="folder of the copy")
    parser.add_argument("--base", help=BASE)
    parser.add_argument("--overwrite", action="store_true", help="replace a bank that stands there")
    options = parser.parse_args(arguments)
    pull_bank(options.bank, options.output, base=options.base, overwrite=options.overwrite)
    say_folder(options.output)
