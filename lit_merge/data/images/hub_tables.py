"""The images and labels in tables of Hugging Face's `datasets`."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lit_merge.data.images.files import Pictures, UnreadableImage, decode
from lit_merge.data.images.splits import Split
from lit_merge.errors import MergeError

# What data sets call our splits.
CALLED = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


class HubPictures(Pictures):
    """The image column of a `datasets` table, decoded when read, as files are.

    Args:
        table: a `datasets.Dataset`, whose column is cast to `Image(decode=False)`.
        column: its name.
        image_size: side of the squares.
        where: what messages call the table.
    """

    def __init__(self, table: Any, column: str, image_size: int, where: str) -> None:
        super().__init__(image_size)
        self.table, self.column, self.where = table, column, where

    def __len__(self) -> int:
        return len(self.table)

    def picture(self, index: int) -> Image.Image:
        return decode(self._file(index), self.label(index))

    def label(self, index: int) -> str:
        return f"{self.where}, row {index}"

    def content(self, index: int) -> bytes:
        file = self._file(index)
        return file.read_bytes() if isinstance(file, Path) else file

    def lengths(self) -> list[int]:
        import pyarrow.compute as pc

        column = self.table.with_format("arrow")[:][self.column]
        found = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
        return [len(self.content(i)) if length is None else length for i, length in enumerate(found)]

    def _file(self, index: int) -> Path | bytes:
        value = self.table[index][self.column]
        if value is None or (value["bytes"] is None and value["path"] is None):
            raise UnreadableImage(f"{self.label(index)} has no image in column {self.column}: remove it")
        found: bytes | None = value["bytes"]
        return Path(value["path"]) if found is None else found


def read_split(
    where: str, split: str, table: Any, image: Sequence[str], label: Sequence[str], image_size: int
) -> Split:
    """Images and labels of a table.

    Args:
        where, split: what messages call them.
        table: a `datasets.Dataset`.
        image, label: names of the columns, of which the first that is there counts.
        image_size: side of the squares.

    Raises:
        MergeError: no such column, one that holds no images, or one that holds no class numbers.
    """
    from datasets import ClassLabel
    from datasets import Image as ImageColumn

    where = f"{where}, split {split}"
    picture, number = _column(where, table, image, "image"), _column(where, table, label, "label")
    feature = table.features[picture]
    if not isinstance(feature, ImageColumn) and getattr(feature, "dtype", None) not in ("binary", "large_binary"):
        raise MergeError(f"{where}: column {picture} holds {_kind(feature)}, expected images: name another with image")
    kind = table.features[number]
    if not isinstance(kind, ClassLabel) and not str(getattr(kind, "dtype", "")).startswith(("int", "uint")):
        raise MergeError(
            f"{where}: column {number} holds {_kind(kind)}, expected ClassLabel or whole numbers: name another with "
            "label, or use datasets' class_encode_column first"
        )
    values = table.with_format("arrow")[:][number].to_pylist()
    if None in values or (values and min(values) < 0):
        row = next(i for i, value in enumerate(values) if value is None or value < 0)
        raise MergeError(f"{where}: row {row} has no class in column {number} ({values[row]})")
    pictures = HubPictures(table.cast_column(picture, ImageColumn(decode=False)), picture, image_size, where)
    names = tuple(kind.names) if isinstance(kind, ClassLabel) else None
    return Split(pictures, torch.tensor(values, dtype=torch.long), names)


def _column(where: str, table: Any, names: Sequence[str], option: str) -> str:
    if found := next((name for name in names if name in table.column_names), None):
        return found
    near = get_close_matches(names[0], table.column_names, n=1, cutoff=0)
    raise MergeError(
        f"{where} has no column {names[0]!r}; it has {', '.join(table.column_names)}: name one with {option}"
        + (f", perhaps {near[0]}" if near else "")
    )


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def find_split(where: str, tables: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of the named splits that is there; MergeError with those that are, otherwise."""
    if found := next((name for name in names if name in tables), None):
        return tables[found]
    raise MergeError(f"{where} has no split {names[0]!r}; it has {', '.join(tables)}: say which is which with splits")
