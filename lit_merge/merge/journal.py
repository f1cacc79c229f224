"""Which weights of an unfinished output are written: the same command goes on from them."""

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from lit_merge.checkpoints.json_text import parse_sealed, sealed
from lit_merge.checkpoints.own import own
from lit_merge.checkpoints.safetensors_writer import Extent
from lit_merge.checkpoints.tensor_values import bytes_of

# Of all processes together, checked when an output is gone on with.
FINISHED = "finished.jsonl"


class Journal:
    """What one process writes of an output, weight by weight, in the files of a folder.

    Every finished weight is a line of JSON: its name, where its bytes are with their checksums, and what else is to be
    known of it. Lines come after the bytes; a kill, or a machine without power, leaves lines that `open` sees to be
    wrong.

    Args:
        folder: where all is that is not finished, of all processes.
        rank: of this process among them.

    Attributes:
        finished: name → what is known of it, of weights that were whole when this process began.
        attempt: how often the output was begun or gone on with before.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self.attempt, self.finished = _read(folder / FINISHED)
        self._files: dict[str, BinaryIO] = {}
        self._extents: list[Extent] = []
        place = folder / f"finished-{self.attempt}-{rank}.jsonl"
        self._lines = own(str(place), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @staticmethod
    def start(folder: Path) -> None:
        """Keeps of what former attempts have finished all that is whole. By one process, before any opens it."""
        attempt, known = _read(folder / FINISHED)
        others = sorted(folder.glob("finished-*.jsonl"))
        # Numbers of attempts name files: without the last one, a new attempt might write over what is kept.
        for place in others if attempt else ():
            known |= _read(place)[1]
        whole = {name: about for name, about in known.items() if _is_whole(folder, about["extents"])}
        _write(folder / FINISHED, attempt + 1, whole)
        for place in others:
            place.unlink()

    def write(self, file: str, position: int, value: Tensor) -> None:
        """Puts a tensor's bytes into a file of the folder, as a part of the weight that is done next."""
        if file not in self._files:
            (self.folder / file).touch()
            self._files[file] = open(self.folder / file, "r+b", buffering=0, opener=own)  # noqa: SIM115
        data = bytes_of(value)
        self._extents.append((file, position, len(data), zlib.crc32(data)))
        self._files[file].seek(position)
        while data:
            data = data[self._files[file].write(data) :]

    def done(self, weight: str, **about: Any) -> None:
        """Says that all of a weight is written."""
        line = sealed({"weight": weight, "extents": self._extents} | about)
        self._extents = []
        # In one piece: a line that a kill cuts short is not what was sealed.
        os.write(self._lines, f"{line}\n".encode())

    def all(self) -> dict[str, Mapping[str, Any]]:
        """name → what is known of it, of the weights that any process has written until now."""
        found: dict[str, Mapping[str, Any]] = dict(self.finished)
        for place in self.folder.glob("finished-*.jsonl"):
            found |= _read(place)[1]
        return found

    def extents(self, folder: str) -> list[Extent]:
        """What any process has written until now into the files of a folder here, of weights that are finished, and
        what this process has written of others."""
        lines = [tuple(extent) for about in self.all().values() for extent in about["extents"]]
        places = [(os.path.split(file), rest) for file, *rest in (*lines, *self._extents)]
        return [(name, *rest) for (inside, name), rest in places if inside == folder]

    def close(self) -> None:
        os.close(self._lines)
        for file in self._files.values():
            file.close()


def _read(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Number of the attempt and the lines by weight; of a line that was cut short or changed, and those after it,
    nothing."""
    attempt, found = 0, {}
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            about = parse_sealed(line)
        except ValueError:
            break
        attempt = about.get("attempt", attempt)
        if "weight" in about:
            found[about["weight"]] = about
    return attempt, found


def _write(path: Path, attempt: int, lines: Mapping[str, Mapping[str, Any]]) -> None:
    draft = path.with_suffix(".writing")
    message = [{"attempt": attempt}, *lines.values()]
    draft.write_text("".join(sealed(one) + "\n" for one in message), encoding="utf-8")
    draft.replace(path)


def _is_whole(folder: Path, extents: list[Any]) -> bool:
    for file, position, length, checksum in extents:
        try:
            with (folder / file).open("rb") as opened:
                opened.seek(position)
                if zlib.crc32(opened.read(length)) != checksum:
                    return False
        except OSError:
            return False
    return True
