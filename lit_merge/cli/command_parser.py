"""The parser of a verb that takes no configuration: Python's own, whose complaints are one line of ours."""

import argparse
from typing import NoReturn

from lit_merge.errors import MergeError


class CommandParser(argparse.ArgumentParser):
    """Of one verb; `about` is said in its help. Raises MergeError for what it does not take."""

    def __init__(self, verb: str, about: str | None) -> None:
        self.verb = verb
        super().__init__(prog=f"python -m lit_merge {verb}", description=about, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise MergeError(f"{self.verb}: {message}; `{self.prog} --help` lists the options")
