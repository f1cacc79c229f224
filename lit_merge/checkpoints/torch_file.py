"""Files of torch.save, zip or older: tensors only, one at a time, and without running what their pickles ask for."""

import os
import struct
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_merge.checkpoints.checkpoint import ACTIVATION, Checkpoint, unfit_dtypes
from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.input_stream import InputStream
from lit_merge.checkpoints.pickle.safe_unpickler import read_pickle
from lit_merge.checkpoints.pickle.stand_ins import Damaged, Name
from lit_merge.checkpoints.pickle.state_dict import models_in, weights_of
from lit_merge.checkpoints.pickle.tensor_records import MOST_EXPANDED, Storage, TensorRecord
from lit_merge.errors import MergeError, MergeWarning

ZIP = b"PK\x03\x04"
# torch.save before 1.6, and with _use_new_zipfile_serialization=False: a pickle of this number, then others.
MAGIC = 0x1950A86A20F9469CFC6C
LEGACY = b"\x80\x02\x8a\n" + MAGIC.to_bytes(10, "little")
PICKLE = b"\x80"
# The same values may stand in a model under many names: so often at most, on average over a file.
MOST_SHARED = 64


class TorchFile(Checkpoint):
    """What torch.save wrote: a state dict, a training checkpoint with one, or a whole module.

    Opening reads the structure; `read` reads one tensor from its place in the file. Names are those of the model's
    `state_dict()`, without the `module.` of DataParallel around all of them.

    Args:
        path: of the file.
        lenient: leave out what cannot be merged, rather than refuse the file: see `Checkpoint.unfit`.
        inside: which entry of a training checkpoint that holds several models, as raw weights and their averages; the
            raw ones by default, and a warning says so.

    Raises:
        MergeError: missing, unreadable, cut short, hostile, or without a model.
    """

    def __init__(
        self, path: str | os.PathLike[str] | InputFile, lenient: bool = False, inside: str | None = None
    ) -> None:
        self.file = path if isinstance(path, InputFile) else InputFile(Path(path), "a file of torch.save")
        self.path = path = self.file.path
        self.label = str(path) if inside is None else f"{path}#{inside}"
        self.inputs = (self.file,)
        start = self.file.start("a file of torch.save")
        try:
            opened = _open_zip(self.file) if start.startswith(ZIP) else _open_legacy(self.file, start)
            found, self._places, classes = opened
            self.metadata = _activation(classes)
            tensors, others = weights_of(found, inside)
            if inside is None and len(models := models_in(found)) > 1:
                message = f"{path} holds weights under {' and '.join(models)}: {models[0]} is taken"
                warnings.warn(f"{message}; {path}#{models[1]} names the others", MergeWarning, stacklevel=4)
            self.unfit = others | unfit_dtypes({name: tensor.dtype for name, tensor in tensors.items()})
            self.refuse_unfit(() if lenient else self.unfit)
            self._tensors = {name: tensor for name, tensor in tensors.items() if name not in self.unfit}
            for name, tensor in self._tensors.items():
                self._check(name, tensor)
            self.nbytes = sum(tensor.numel * tensor.dtype.itemsize for tensor in self._tensors.values())
            if self.nbytes > max(MOST_EXPANDED, MOST_SHARED * self.file.size):
                raise Damaged(
                    f"its weights take {self.nbytes:,} bytes, and the file has {self.file.size:,}: it may be hostile; "
                    "save a copy of its tensors (`.clone()`), if they are meant"
                )
        except Damaged as error:
            raise MergeError(f"{self.label}: {error}") from error
        self.shapes = {name: tensor.size for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}
        places: dict[tuple[Any, ...], list[str]] = {}
        for name, one in self._tensors.items():
            if one.numel:
                places.setdefault((one.storage.key, one.offset, one.size, one.stride), []).append(name)
        self.tied = tuple(tuple(names) for names in places.values() if len(names) > 1)

    def _check(self, name: str, tensor: TensorRecord) -> None:
        place = self._places.get(tensor.storage.key)
        if place is None or place[1] < tensor.storage.nbytes:
            raise Damaged(f"it lacks values of {name}: copy or download it again")

    def read(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if tensor.numel == 0:
            return torch.empty(tensor.size, dtype=tensor.dtype)
        values = bytearray(tensor.span * tensor.dtype.itemsize)
        start = self._places[tensor.storage.key][0] + tensor.offset * tensor.dtype.itemsize
        self.file.read_into(start, memoryview(values), name)
        return torch.frombuffer(values, dtype=tensor.dtype).as_strided(tensor.size, tensor.stride).contiguous()


Places = dict[str, tuple[int, int]]
"""Key of a storage → where it begins in the file, and its length in bytes."""


def _activation(classes: set[Name]) -> dict[str, str]:
    """The activation of a CLIP, which only a whole module tells: none of its weights shows it."""
    names = {one.name for one in classes}
    if any("QuickGELU" in name for name in names):
        return {ACTIVATION: "quick_gelu"}
    return {ACTIVATION: "gelu"} if names & {"GELU", "GELUActivation"} else {}


def _open_zip(file: InputFile) -> tuple[Any, Places, set[Name]]:
    """The value of a zip file's pickle, its storages' places, and the classes that it names. Nothing is unpacked:
    entries' names are no paths."""
    try:
        with zipfile.ZipFile(InputStream(file)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if len(entries) < len(archive.infolist()):
                raise Damaged("it holds two entries of one name")
            pickles = [name for name in entries if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise Damaged("it is a zip file, but not one of torch.save: it does not hold exactly one data.pkl")
            folder = pickles[0].removesuffix("data.pkl")
            # A few compressed bytes can stand for more than there is memory.
            ours = [
                entry for name, entry in entries.items() if name.startswith((f"{folder}data", f"{folder}byteorder"))
            ]
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in ours):
                raise Damaged("its entries are compressed, which torch.save never does")
            if entries.get(f"{folder}byteorder") and archive.read(f"{folder}byteorder") != b"little":
                raise Damaged("its values are big-endian: load it with torch.load and save it again on this machine")
            found, storages, classes = read_pickle(BytesIO(archive.read(pickles[0])))
    except (Damaged, MergeError):
        raise
    # zipfile fails in as many ways as a file can be damaged.
    except Exception as error:
        raise Damaged("it is cut short or damaged: copy or download it again") from error
    places = {}
    for key in storages:
        entry = entries.get(f"{folder}data/{key}")
        if entry is not None:
            header = file.read(entry.header_offset, 30)
            if len(header) < 30 or not header.startswith(ZIP):
                raise Damaged("it is cut short or damaged: copy or download it again")
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            places[key] = (start, min(entry.file_size, entry.compress_size, file.size - start))
    return found, places, classes


def _open_legacy(held: InputFile, start: bytes) -> tuple[Any, Places, set[Name]]:
    """What `_open_zip` answers, of an older file: pickles one after the other, then the values."""
    if not start.startswith(LEGACY):
        raise Damaged("it is a pickle, but none that torch.save wrote: save the model's state_dict() with torch.save")
    file = InputStream(held)
    _, _, (system, *_) = (read_pickle(file) for _ in range(3))
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise Damaged("its values are not little-endian, or it is damaged")
    found, storages, classes = read_pickle(file)
    keys, *_ = read_pickle(file)
    position, places = file.tell(), {}
    for key in keys if isinstance(keys, list) else []:
        storage: Storage | None = storages.get(key) if isinstance(key, str) else None
        if storage is None or int.from_bytes(held.read(position, 8), "little") != storage.numel:
            raise Damaged("it is cut short or damaged: copy or download it again")
        position += 8
        places[key] = (position, max(0, min(storage.nbytes, held.size - position)))
        position += storage.nbytes
    return found, places, classes
