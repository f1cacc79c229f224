"""The verb `explain`: what a method, objective, callback or option does, and when to use it."""

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

from lit_merge.cli.catalogue import KINDS, Entry, catalogue
from lit_merge.cli.command_parser import CommandParser, ParserFound, parsers_only
from lit_merge.errors import MergeError

WIDTH = 110
# The verbs whose options are explained, the one first that has most.
VERBS = ("fit", "export", "sweep", "analyze", "merge", "predict", "inspect", "convert", "zoo", "leaks")


def explain_command(arguments: Sequence[str]) -> None:
    """Explains a name, or lists the names that can be explained.

    Raises:
        MergeError: a name that nothing has.
    """
    parser = CommandParser("explain", "Says what a method, objective, network, data, callback or option does.")
    parser.add_argument("name", nargs="?", help="as CART, Entropy, RankSchedule or rank_ratio; none lists all")
    # An option may be written as on a command line.
    plain = [one if one in ("-h", "--help") else one.lstrip("-") for one in arguments]
    name = parser.parse_args(plain).name
    print("\n".join(listing() if name is None else explanation(name)))


def listing() -> Iterator[str]:
    """Lines with every class that can be named, by its kind."""
    for kind in KINDS:
        entries = [entry for entry in catalogue().values() if entry.kind == kind]
        if entries:
            yield f"{kind} ({entries[0].place}):"
            width = max(len(entry.name) for entry in entries)
            yield from (_shortened(f"  {entry.name:{width}}  {entry.title}") for entry in entries)
            yield ""
    yield "`lit-merge explain NAME` explains one of these, or any option, as rank_ratio."


def explanation(name: str) -> Iterator[str]:
    """Lines that explain a class, or every option of this name.

    Raises:
        MergeError: nothing is called so; the nearest name is said.
    """
    entries = catalogue()
    by_case = {one.lower(): one for one in entries}
    if name.lower() in by_case:
        yield from _of_class(entries[by_case[name.lower()]])
        return
    option = name
    last = option.rpartition(".")[2]
    owners = [entry for entry in entries.values() if any(one.name == last for one in entry.options)]
    verbs = {} if owners and "." not in option else _options_of_verbs(option)
    if not owners and not verbs:
        known = [*entries, *{one.name for entry in entries.values() for one in entry.options}, *_names_of_options()]
        near = get_close_matches(name, known, n=1, cutoff=0) or [*entries][:1]
        raise MergeError(f"nothing is called {name!r}; the nearest is {near[0]}; `lit-merge explain` lists classes")
    for action, of in verbs.values():
        yield f"--{action.dest}: an option of {', '.join(of)}"
        yield from _indented(f"{action.help}" if action.help else "")
        if action.default not in (None, argparse.SUPPRESS):
            yield f"  by default: {action.default}"
        yield ""
    for entry in owners:
        (found,) = (one for one in entry.options if one.name == last)
        default = f", by default {found.default}" if found.default else ", which has to be given"
        yield f"--{entry.place}.{last}: {found.kind}{default}; an option of the {entry.kind} {entry.name}"
        yield from _indented(found.text)
        yield ""


def _of_class(entry: Entry) -> Iterator[str]:
    yield f"{entry.name}, {'an' if entry.kind[0] in 'aeiou' else 'a'} {entry.kind}: {entry.title}"
    yield ""
    for paragraph in entry.text.split("\n\n"):
        for item in re.split(r"\n(?=- )", paragraph.strip()):
            yield from textwrap.wrap(" ".join(item.split()), WIDTH, subsequent_indent="  " * item.startswith("- "))
        yield ""
    if entry.papers:
        yield f"Paper: {', '.join(f'https://arxiv.org/abs/{number}' for number in entry.papers)}"
    yield f"In a configuration: {entry.place}: {{class_path: {entry.name}}}; source: lit_merge/{entry.file}"
    if entry.options:
        yield ""
        yield "Options:"
    for option in entry.options:
        yield f"  {option.name}: {option.kind}{f' = {option.default}' if option.default else ''}"
        yield from _indented(option.text, 6)


def _indented(text: str, spaces: int = 2) -> list[str]:
    margin = " " * spaces
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin)


def _shortened(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 2].rstrip(' ,;:')} …"


def _options_of_verbs(wanted: str) -> Mapping[str, tuple[argparse.Action, list[str]]]:
    """Name → an option that is called so, whole or in its last part, and the verbs that have it."""
    found: dict[str, tuple[argparse.Action, list[str]]] = {}
    for verb in VERBS:
        for action in _parser_of(verb)._actions:
            if action.dest == wanted or ("." not in wanted and action.dest.rpartition(".")[2] == wanted):
                found.setdefault(action.dest, (action, []))[1].append(verb)
    return found


def _names_of_options() -> list[str]:
    return sorted({action.dest for verb in VERBS for action in _parser_of(verb)._actions})


def _parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb, which is not run."""
    from lit_merge.cli.main import run_verb

    try:
        with parsers_only():
            run_verb(verb, [])
    except ParserFound as found:
        return found.parser
    raise AssertionError(f"{verb} does not parse")
