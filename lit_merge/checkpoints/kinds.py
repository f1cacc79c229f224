"""What commands write: `--overwrite` replaces nothing that its own command has not written."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lit_merge.errors import MergeError

# What file managers leave in every folder.
NOBODYS = (".DS_Store",)


@dataclass(frozen=True)
class Kind:
    """What one command writes.

    Attributes:
        written_by: the command, as `merge`.
        is_one: whether a file or a folder that exists is one. It may fail as reading and parsing do.
        files: of a folder, a regular expression for the path in it of every file.
    """

    written_by: str
    is_one: Callable[[Path], bool]
    files: str = ""

    def check(self, target: Path) -> None:
        """Raises MergeError where something stands there that this command has not written. What is empty is lost
        without loss."""
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
        for folder, _, names in os.walk(target):
            for name in names:
                path = Path(folder, name)
                # A pipe would be waited for when it is looked at.
                if path.exists() and not path.is_file():
                    raise MergeError(f"{path} is a pipe or a device: move it elsewhere, or choose another place")
        try:
            known = (target.is_file() and not target.stat().st_size) or self.is_one(target)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            known = False
        if not known:
            raise MergeError(
                f"{target} was not written by `lit-merge {self.written_by}`: remove it yourself, or choose another "
                "place"
            )
        for folder, folders, names in os.walk(target):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            for name in (*links, *names):
                inside = os.path.relpath(os.path.join(folder, name), target).replace(os.sep, "/")
                if name not in NOBODYS and not re.fullmatch(self.files, inside):
                    raise MergeError(
                        f"{target} holds {inside}, which `lit-merge {self.written_by}` did not write: move it "
                        "elsewhere, or choose another place"
                    )
