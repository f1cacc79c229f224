"""Digests of an output's files, in a file next to them: whoever reads one of them sees that it is as it was written."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from lit_merge.checkpoints.input_file import LONGEST_TEXT, InputFile
from lit_merge.checkpoints.json_text import parse_sealed, sealed
from lit_merge.errors import MergeError

MANIFEST = "digests.json"


def write_manifest(folder: Path, files: Iterable[Path]) -> None:
    """Notes these files of a folder, which are whole."""
    found = {file.relative_to(folder).as_posix(): digest_of(file.read_bytes()) for file in sorted(files)}
    (folder / MANIFEST).write_text(sealed(found, indent=1) + "\n", encoding="utf-8")


def check_noted(folder: Path, file: Path, content: bytes) -> None:
    """Raises MergeError where a file of a folder does not hold what was noted. A folder of an earlier version has no
    digests, and what was not noted is believed."""
    path = folder / MANIFEST
    if not path.is_file():
        return
    try:
        noted = parse_sealed(InputFile(path, "digests").text("digests", LONGEST_TEXT))
    except MergeError:
        raise
    except ValueError as error:
        raise MergeError(f"{path} is damaged: copy the folder again, or remove this file to do without") from error
    wanted = noted.get(file.relative_to(folder).as_posix())
    if wanted is not None and wanted != digest_of(content):
        raise MergeError(
            f"{file} is not as it was written: its digest in {MANIFEST} is another one; copy it again, or remove "
            f"{MANIFEST} if the change is meant"
        )


def digest_of(content: bytes) -> str:
    """BLAKE2b-128 of a file's content, in hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()
