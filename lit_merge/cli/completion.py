"""`--print-completion SHELL`: a script by which a shell completes verbs, options and their values."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

import shtab

from lit_merge.cli.command_parser import ParserFound, parsers_only
from lit_merge.errors import MergeError

PROGRAM = "lit-merge"
# Arguments that are paths: of these a shell completes files.
PATHS = {"config", "output", "run", "base", "path", "folder", "source", "runs", "banks", "ckpt_path", "bank"}


def completion(arguments: Sequence[str], verbs: Mapping[str, str], run: Callable[[str], None]) -> str:
    """The script, made by shtab from the verbs' own parsers.

    Args:
        arguments: the name of the shell.
        verbs: verb → what it does.
        run: starts a verb with no arguments; the parser that it makes is what counts.

    Raises:
        MergeError: no such shell.
    """
    shells = list(shtab.SUPPORTED_SHELLS)
    if len(arguments) != 1 or arguments[0] not in shells:
        near = get_close_matches(arguments[0], shells, n=1, cutoff=0) if arguments else shells
        asked = f" {arguments[0]!r}; the nearest is {near[0]}" if arguments else ""
        raise MergeError(f"--print-completion{asked}: expected one of {', '.join(shells)}")
    whole = argparse.ArgumentParser(PROGRAM)
    parts = whole.add_subparsers()
    for verb, about in verbs.items():
        part = parts.add_parser(verb, help=_plain(about))
        for action in _parser(verb, run)._actions if verb != "bank" else ():
            _copy(action, part)
    return str(shtab.complete(whole, shell=arguments[0]))


def _parser(verb: str, run: Callable[[str], None]) -> argparse.ArgumentParser:
    with parsers_only():
        try:
            run(verb)
        except ParserFound as found:
            return found.parser
    raise AssertionError(f"{verb} makes no parser")


def _copy(action: argparse.Action, part: argparse.ArgumentParser) -> None:
    """An option of a verb's parser, as shtab takes it: without types, defaults and actions of jsonargparse."""
    if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
        return
    known: dict[str, Any] = {"help": _plain(action.help or ""), "choices": _choices(action)}
    if action.nargs == 0:
        known = {"help": known["help"], "action": "store_true"}
    made = part.add_argument(*(action.option_strings or [action.dest]), **known)
    if action.dest.rpartition(".")[2] in PATHS:
        made.complete = shtab.FILE  # type: ignore[attr-defined]


def _choices(action: argparse.Action) -> list[str] | None:
    """The values that an option takes, where they are names."""
    if action.choices is not None:
        return [str(one) for one in action.choices]
    kind = getattr(action, "_typehint", None)
    kinds = [kind] if get_origin(kind) is Literal else get_args(kind)
    names = [one for part in kinds if get_origin(part) is Literal for one in get_args(part)]
    return names if names and all(isinstance(one, str) for one in names) else None


def _plain(text: str) -> str:
    """One line, in which nothing is put in the place of `%`."""
    return " ".join(text.split()).replace("%", "%%")
