"""Safetensors files larger than memory: tensors are announced first, then written one at a time, in any order."""

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lit_merge.checkpoints.checksums import with_checksums
from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.outputs import replacing
from lit_merge.checkpoints.safetensors_file import read_header
from lit_merge.checkpoints.safetensors_header import INDEX, make_header, name_shards, nbytes_of, split_into_shards
from lit_merge.checkpoints.tensor_values import bytes_of, check_held
from lit_merge.errors import MergeError

# In the header's metadata: what a command has written.
MARK = "lit_merge"
_FILES = r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"


def written_weights(written_by: str, form: str, copied: str = "") -> Kind:
    """Weights that one command writes, as a file or as a folder.

    Args:
        written_by: the command.
        form: what it marks its files with.
        copied: a regular expression for names of what it copies next to them.
    """

    def is_one(path: Path) -> bool:
        files = [path] if path.is_file() else list(path.glob("*.safetensors"))
        headers = [read_header(InputFile(file))[0] for file in files]
        return bool(headers) and all(one.get("__metadata__", {}).get(MARK) == form for one in headers)

    return Kind(written_by, is_one, f"{_FILES}|{copied}" if copied else _FILES)


# Under which an index and its shards say that they are of one merge, and what stands there until all is written.
DIGEST, PENDING = "lit_merge_digest", "0" * 32

Extent = tuple[str, int, int, int]
"""File, position, length and checksum of what was written."""


class TensorFiles:
    """One safetensors file, or a folder of shards that transformers loads.

    Args:
        shapes: of all tensors.
        dtypes: likewise.
        max_shard_bytes: of tensors in one file of a folder; None for one file instead of a folder. A larger tensor has
            a file of its own.
        metadata: texts for the headers.

    Attributes:
        places: name → its file, relative to the folder (empty where there is one file), and where it begins in it.

    Raises:
        MergeError: a dtype that safetensors files of weights do not hold.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
        max_shard_bytes: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.shapes, self.dtypes, self.folder = shapes, dtypes, max_shard_bytes is not None
        files: dict[str, Sequence[str]] = {"": list(shapes)}
        if max_shard_bytes is not None:
            files = name_shards(split_into_shards(shapes, dtypes, max_shard_bytes))
        self._headers: dict[str, tuple[bytes, int]] = {}
        self.places: dict[str, tuple[str, int]] = {}
        about = dict(metadata or {"format": "pt"}) | ({DIGEST: PENDING} if len(files) > 1 else {})
        for file, names in files.items():
            header, starts = make_header(names, shapes, dtypes, about)
            self._headers[file] = header, len(header) + sum(self._nbytes(name) for name in names)
            self.places |= {name: (file, len(header) + start) for name, start in starts.items()}

    @property
    def names(self) -> set[str]:
        """Bytes of all files of a folder."""
        return {*self._headers, INDEX}

    def create(self, path: Path) -> None:
        """Makes the files, of their full size, with headers and index; values are 0, or what they were in files that
        are there already.

        Raises:
            MergeError: the disk has less space.
        """
        places = [path / file if file else path for file in self._headers]
        there = sum(place.stat().st_size for place in places if place.exists())
        needed, free = sum(size for _, size in self._headers.values()), shutil.disk_usage(path.parent).free
        # Holes take no space: what is there may still be one.
        if needed - there > free:
            raise MergeError(f"{path} would take {needed:,} bytes; its disk has {free:,} left: choose another place")
        if self.folder:
            path.mkdir(exist_ok=True)
        for file, (header, size) in self._headers.items():
            place = path / file if file else path
            place.touch()
            with place.open("r+b") as opened:
                opened.write(header)
                opened.truncate(size)
        if len(self._headers) > 1:
            self._write_index(path, PENDING)

    def seal(self, path: Path, extents: Iterable[Extent]) -> None:
        """Says in all shards and their index, once they are whole, that they are of one merge: by a digest of what was
        written, so that equal merges give equal files."""
        if len(self._headers) == 1:
            return
        found = hashlib.blake2b(digest_size=len(PENDING) // 2)
        for extent in sorted(extents):
            found.update(repr(tuple(extent)).encode())
        for header, _ in self._headers.values():
            found.update(header)
        for file, (header, _) in self._headers.items():
            with (path / file).open("r+b") as opened:
                opened.write(header.replace(PENDING.encode(), found.hexdigest().encode(), 1))
        self._write_index(path, found.hexdigest())

    def _write_index(self, path: Path, digest: str) -> None:
        weight_map = {name: file for name, (file, _) in self.places.items()}
        metadata = {"total_size": sum(self._nbytes(name) for name in self.shapes), DIGEST: digest}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        (path / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def place(self, name: str, value: Tensor, row: int | None = None) -> tuple[str, int]:
        """The file of a tensor, and where in it its value goes, or that of a block of its rows which begins at `row`.

        Raises:
            ValueError: a tensor that is not the one that was announced.
        """
        file, start = self.places[name]
        shape = self.shapes[name]
        fits = tuple(value.shape) == shape if row is None else tuple(value.shape[1:]) == shape[1:]
        if not fits or value.dtype != self.dtypes[name]:
            raise ValueError(f"{name} is {list(value.shape)} of {value.dtype}, announced as {list(shape)}")
        return file, start + (row or 0) * math.prod(shape[1:]) * value.itemsize

    def _nbytes(self, name: str) -> int:
        return nbytes_of(self.shapes[name], self.dtypes[name])


def write_stream(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    max_shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    kind: Kind | None = None,
) -> None:
    """Writes tensors as they come, whole or not at all; one at a time is in memory.

    Args:
        path: a file; with `max_shard_bytes` a folder of `model-00001-of-0000N.safetensors` and an index, or of
            `model.safetensors` where one file is enough, which transformers loads.
        tensors: names and values, in any order.
        shapes: of all of them, known beforehand: the header comes first.
        dtypes: likewise.
        max_shard_bytes: of tensors in one file. A larger tensor has a file of its own.
        metadata: texts for the header.
        overwrite: replace what stands there.
        kind: nothing else is replaced.

    Raises:
        MergeError: the path exists or cannot be written, or the disk is full; a value that is not finite.
        ValueError: tensors that are not those that were announced.
    """
    with replacing(path, overwrite, kind) as draft, ExitStack() as stack:
        files = TensorFiles(shapes, dtypes, max_shard_bytes, metadata)
        files.create(draft)
        opened: dict[str, BinaryIO] = {}
        extents: list[Extent] = []
        missing = set(shapes)
        for name, value in tensors:
            check_held(name, value)
            file, position = files.place(name, value)
            if file not in opened:
                opened[file] = stack.enter_context((draft / file if file else draft).open("r+b"))
            opened[file].seek(position)
            data = bytes_of(value)
            opened[file].write(data)
            if files.folder:
                extents.append((file, position, len(data), zlib.crc32(data)))
            missing.discard(name)
        if missing:
            raise ValueError(f"{min(missing)} was announced and did not come")
        stack.close()
        files.seal(draft, extents)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes one safetensors file, whole or not at all: of equal tensors the same bytes, which safetensors' own writer,
    with metadata, does not promise. It carries checksums, which `SafetensorsFile` looks at. Raises MergeError for
    values that are not finite too."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    dtypes = {name: value.dtype for name, value in tensors.items()}
    about = with_checksums(metadata or {"format": "pt"}, tensors)
    write_stream(path, tensors.items(), shapes, dtypes, metadata=about, overwrite=overwrite)
