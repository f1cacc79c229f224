"""The files of a task bank: a folder of `bank.safetensors` (tensors) and `bank.json` (what they are)."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_merge.bank.base_reference import find_base
from lit_merge.bank.checksums import checksums, sum_at
from lit_merge.bank.description import parse_description
from lit_merge.bank.learnt import shape_of
from lit_merge.bank.model_card import model_card
from lit_merge.bank.on_demand import without_values
from lit_merge.bank.packed_file import PackedFile
from lit_merge.bank.packing import BASE
from lit_merge.checkpoints import SafetensorsFile, replacing, write_stream
from lit_merge.checkpoints.input_file import InputFile, of_one_moment
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import resolve
from lit_merge.checkpoints.safetensors_header import make_header
from lit_merge.checkpoints.tensor_values import bytes_of, is_finite
from lit_merge.errors import MergeError

# Under which both files say that they are of one bank.
DIGEST, DIGITS = "lit_merge_digest", 32


class BankFile(SafetensorsFile):
    """The tensors of a bank. Each, and each task's share of one, is looked at the first time that it is read: it is as
    it was saved, and holds neither NaN nor infinity.

    Args:
        path: of the file.
        sums: checksums of its tensors, see `bank/checksums.py`; those of earlier versions have none.
    """

    def __init__(self, path: Path, sums: Mapping[str, str]) -> None:
        super().__init__(path)
        self._sums = sums
        self._seen: set[tuple[str, int | None]] = set()

    @property
    def stored(self) -> SafetensorsFile:
        """What lies on the disk. No attribute: in a cycle the file would stay open until garbage is collected."""
        return self

    def read(self, name: str) -> Tensor:
        value = super().read(name)
        if (name, None) not in self._seen:
            self._look(name, value, self._sums.get(name))
            self._seen.add((name, None))
        return value

    def read_row(self, name: str, row: int) -> Tensor:
        """The part (1, …) of one task, in a tensor with a part for each; no other is read."""
        value = torch.empty(1, *self.shapes[name][1:], dtype=self.dtypes[name])
        self.read_into(name, value, row)
        if not self._seen & {(name, None), (name, row)}:
            sums = self._sums.get(name)
            self._look(name, value, None if sums is None else sum_at(sums, row))
            self._seen.add((name, row))
        return value

    def _look(self, name: str, value: Tensor, sums: str | None) -> None:
        weight = name.partition("/")[2] or None
        if not is_finite(value):
            raise MergeError(
                f"{self.path}: {name} holds NaN or infinity: it is damaged, or comes from an adaptation that "
                "went wrong; make the bank anew",
                weight=weight,
            )
        if sums is not None and sums != checksums(name, value):
            raise MergeError(
                f"{self.path}: {name} is not as it was saved: its checksum is another one; copy the bank again, or "
                "make it anew",
                weight=weight,
            )

    def empty(self) -> dict[str, Tensor]:
        """Name → a tensor of this shape and dtype without values, on the device `meta`."""
        return {name: torch.empty(shape, dtype=self.dtypes[name], device="meta") for name, shape in self.shapes.items()}


AnyFile = BankFile | PackedFile


def _is_bank(folder: Path) -> bool:
    about = parse_json((folder / "bank.json").read_bytes())
    return {"format_version", "tasks", "layers"} <= about.keys() and (folder / "bank.safetensors").is_file()


BANK = Kind("export", _is_bank, r"bank\.(json|safetensors)|README\.md")


def write_bank_folder(
    path: str | Path,
    about: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    overwrite: bool,
) -> None:
    """Writes all files, whole or not at all, with the values that `read` answers one by one. See `TaskBank.save`."""
    tensors = without_values(tensors)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    dtypes = {name: value.dtype for name, value in tensors.items()}
    with replacing(path, overwrite, BANK) as folder:
        folder.mkdir()
        about = {**about, DIGEST: _digest(_with_version(about), shapes, dtypes, read)}
        metadata = {"format": "pt", DIGEST: about[DIGEST]}
        values = ((name, read(name)) for name in tensors)
        write_stream(folder / "bank.safetensors", values, shapes, dtypes, metadata=metadata)
        for name, text in _texts(about).items():
            (folder / name).write_text(text, encoding="utf-8")


def sizes_of(
    about: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype]
) -> list[int]:
    """Bytes of the files that `write_bank_folder` would write, whatever digests and checksums are."""
    about = {**about, DIGEST: "0" * DIGITS}
    header, _ = make_header(shapes, shapes, dtypes, {"format": "pt", DIGEST: about[DIGEST]})
    values = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items())
    return [len(header) + values, *(len(text.encode()) for text in _texts(about).values())]


def _with_version(about: Mapping[str, Any]) -> dict[str, Any]:
    return {"format_version": 3 if "packed" in about else 2 if "learnt" in about else 1, **about}


def _texts(about: Mapping[str, Any]) -> dict[str, str]:
    """The files next to the tensors."""
    about = _with_version(about)
    return {"bank.json": json.dumps(about, indent=1) + "\n", "README.md": model_card(about)}


def _digest(
    about: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    read: Callable[[str], Tensor],
) -> str:
    """Of the description, in which `fingerprint` stands for the values of origin and deltas, of the shapes and dtypes,
    and of what adaptation changes: all that is known of a bank without reading the most of it."""
    found = hashlib.blake2b(digest_size=DIGITS // 2)
    found.update(json.dumps({key: value for key, value in about.items() if key != DIGEST}, sort_keys=True).encode())
    for name in sorted(shapes):
        found.update(f"{name} {dtypes[name]} {tuple(shapes[name])}".encode())
    for name in ("coefficients", *about.get("learnt", ())):
        found.update(bytes_of(read(name)))
    return found.hexdigest()


def _check_pair(about: Mapping[str, Any], file: AnyFile) -> None:
    """Raises MergeError where the two files are not of one bank; those of earlier versions do not say."""
    said, own = about.get(DIGEST), file.metadata.get(DIGEST)
    if said != own:
        raise MergeError(
            f"{file.path} and bank.json are of different banks, or one of them was made anew: their {DIGEST} differ; "
            "copy both files of one bank"
        )
    if said is not None and said != _digest(about, file.stored.shapes, file.stored.dtypes, file.read):
        raise MergeError(
            f"{file.path} and bank.json are not as they were saved: their {DIGEST} is of another description or of "
            "other coefficients; copy both again, or remove it from both files if the change is meant"
        )


def open_bank_folder(path: str | Path, base: str | Path | None = None) -> tuple[dict[str, Any], AnyFile]:
    """The description, and the file with the tensors, which fit together. See `TaskBank.load`."""
    folder = resolve(path)
    return of_one_moment(folder, lambda: _open(folder, base))


def _open(folder: Path, base: str | Path | None) -> tuple[dict[str, Any], AnyFile]:
    path = folder / "bank.json"
    try:
        described = InputFile(path, "a bank's description")
    except MergeError as error:
        raise MergeError(f"{folder} is no task bank: {error}") from error
    text = described.text("a bank's description")
    about = parse_description(text, path)
    file = _open_tensors(folder, about, base)
    file.inputs = (*file.inputs, described)
    expected = {f"origin/{name}" for name in about["dtypes"]} | {"coefficients", *about["learnt"]}
    for name in about["layers"]:
        expected |= {f"U/{name}", f"S/{name}", f"V/{name}"} if f"U/{name}" in file.shapes else {f"delta/{name}"}
    if expected != set(file.shapes):
        weight = min(expected ^ set(file.shapes))
        raise MergeError(f"{file.path} and bank.json are of different banks: {weight} is in one of them only")
    rows = _rows(about, file)
    for name in about["layers"]:
        _check_delta(file, name, rows)
    for key in about["learnt"]:
        wanted = shape_of(key, file.shapes)
        if wanted != file.shapes[key] or not file.dtypes[key].is_floating_point:
            wanted_here = "no such tensor here" if wanted is None else f"floating point of {list(wanted)}"
            found = f"{file.dtypes[key]} of shape {list(file.shapes[key])}"
            raise MergeError(f"{file.path}: {key} is {found}, expected {wanted_here}", weight=key.partition("/")[2])
    for name, dtype in about["dtypes"].items():
        kind = file.dtypes[f"origin/{name}"]
        if dtype.is_floating_point != kind.is_floating_point:
            raise MergeError(f"{file.path}: origin/{name} is {kind}, but {dtype} in bank.json", weight=name)
    _check_pair(parse_json(text, unicode=False), file)
    return about, file


def _open_tensors(folder: Path, about: Mapping[str, Any], base: str | Path | None) -> AnyFile:
    path = folder / "bank.safetensors"
    if "packed" not in about:
        return BankFile(path, about["checksums"])
    reference = None
    if "base" in about:
        reference = find_base(about["base"], folder, base)
        reference.check({name: packed.shape for name, packed in about["packed"].items() if packed.origin == BASE})
    return PackedFile(path, about["packed"], about["layers"], about["learnt"], about["checksums"], reference)


def _rows(about: Mapping[str, Any], file: AnyFile) -> int:
    """Number of deltas of every weight, from the coefficients."""
    shape, dtype = file.shapes["coefficients"], file.dtypes["coefficients"]
    if len(shape) != 2 or not dtype.is_floating_point:
        raise MergeError(f"{file.path}: coefficients are {dtype} of shape {list(shape)}, expected tasks × weights")
    if shape[0] not in (1, len(about["tasks"])) or shape[1] != len(about["layers"]):
        raise MergeError(f"{file.path} and bank.json are of different banks: the numbers of tasks or weights differ")
    file.read("coefficients")  # refuses those that are no numbers
    return shape[0]


def _check_delta(file: AnyFile, name: str, rows: int) -> None:
    """Raises MergeError where the delta of a weight is not one of its origin."""
    shape = file.shapes[f"origin/{name}"]
    wanted: dict[str, tuple[int, ...]] = {f"delta/{name}": (rows, *shape)}
    if f"U/{name}" in file.shapes:
        rank = file.shapes[f"S/{name}"][-1] if file.shapes[f"S/{name}"] else 0
        if len(shape) != 2 or not rank:
            raise MergeError(f"{file.path}: origin/{name} has shape {list(shape)}, expected a matrix", weight=name)
        wanted = {f"U/{name}": (rows, shape[0], rank), f"S/{name}": (rows, rank), f"V/{name}": (rows, shape[1], rank)}
    for key, one in wanted.items():
        if file.shapes[key] != one or not file.dtypes[key].is_floating_point:
            found = f"{file.dtypes[key]} of shape {list(file.shapes[key])}"
            raise MergeError(f"{file.path}: {key} is {found}, expected floating point of {list(one)}", weight=name)
