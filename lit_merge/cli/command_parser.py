"""The parser of a verb that takes no configuration: Python's own, whose complaints are one line of ours."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from lit_merge.errors import MergeError

_parsers_only = False


class ParserFound(Exception):
    """Ends a verb that was started for its parser alone."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


@contextmanager
def parsers_only() -> Iterator[None]:
    """Inside, verbs end with `ParserFound` where they would parse."""
    global _parsers_only
    _parsers_only = True
    try:
        yield
    finally:
        _parsers_only = False


def offer(parser: argparse.ArgumentParser) -> None:
    """Called by every verb before it parses. Raises ParserFound where the parser is all that is wanted."""
    if _parsers_only:
        raise ParserFound(parser)


class CommandParser(argparse.ArgumentParser):
    """Of one verb; `about` is said in its help. Raises MergeError for what it does not take."""

    def __init__(self, verb: str, about: str | None) -> None:
        self.verb = verb
        super().__init__(prog=f"lit-merge {verb}", description=about, allow_abbrev=False)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        offer(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise MergeError(f"{self.verb}: {message}; `{self.prog} --help` lists the options")
