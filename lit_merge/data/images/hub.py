"""Images of Hugging Face data sets, from folders on disk or by name: HubImages, and the tables behind it."""

import functools
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lit_merge.data.datasets_tables import open_tables
from lit_merge.data.images.decoding import UnreadableImage, decode
from lit_merge.data.images.files import Pictures, Side
from lit_merge.data.images.splits import Split, SplitName, SplitTasks
from lit_merge.errors import MergeError

# What data sets call our splits.
CALLED = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}


class HubPictures(Pictures):
    """The image column of a `datasets` table, decoded when read, as files are.

    Args:
        table: a `datasets.Dataset`, whose column is cast to `Image(decode=False)`.
        column: its name.
        side: of the squares.
        where: what messages call the table.
    """

    def __init__(self, table: Any, column: str, side: Side, where: str) -> None:
        super().__init__(side)
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


class Tables:
    """One data set of `datasets`, opened when its splits are asked for.

    Args:
        where: a folder, or `hf://org/name`.
        called: our splits → what the data set may call each of them.
        image, label: names of the columns, of which the first that is there counts.
        side: of the squares.
    """

    def __init__(
        self,
        where: str,
        called: Mapping[str, Sequence[str]],
        image: Sequence[str],
        label: Sequence[str],
        side: Side,
    ) -> None:
        self.where, self.called = where, called
        self.image, self.label, self.side = image, label, side

    @functools.cached_property
    def tables(self) -> Mapping[str, Any]:
        """The data set's own splits."""
        return open_tables(self.where)

    def splits(self) -> list[str]:
        """Which of train, validation and test are there."""
        return [split for split, names in self.called.items() if any(name in self.tables for name in names)]

    def find(self, names: Sequence[str]) -> Any:
        """The first of the named splits that is there; MergeError with those that are, otherwise."""
        if found := next((name for name in names if name in self.tables), None):
            return self.tables[found]
        there = ", ".join(self.tables)
        raise MergeError(f"{self.where} has no split {names[0]!r}; it has {there}: say which is which with splits")

    def read(self, split: str) -> Split:
        """Images and labels of a split.

        Raises:
            MergeError: no such split or column, one that holds no images, or one that holds no class numbers.
        """
        from datasets import ClassLabel
        from datasets import Image as ImageColumn

        where, table = f"{self.where}, split {split}", self.find(self.called[split])
        picture, number = _column(where, table, self.image, "image"), _column(where, table, self.label, "label")
        feature, kind = table.features[picture], table.features[number]
        if not isinstance(feature, ImageColumn) and getattr(feature, "dtype", None) not in ("binary", "large_binary"):
            raise MergeError(
                f"{where}: column {picture} holds {_kind(feature)}, expected images: name another with image"
            )
        if not isinstance(kind, ClassLabel) and not str(getattr(kind, "dtype", "")).startswith(("int", "uint")):
            raise MergeError(
                f"{where}: column {number} holds {_kind(kind)}, expected ClassLabel or whole numbers: name another "
                "with label, or use datasets' class_encode_column first"
            )
        values = table.with_format("arrow")[:][number].to_pylist()
        if None in values or (values and min(values) < 0):
            row = next(i for i, value in enumerate(values) if value is None or value < 0)
            raise MergeError(f"{where}: row {row} has no class in column {number} ({values[row]})")
        pictures = HubPictures(table.cast_column(picture, ImageColumn(decode=False)), picture, self.side, where)
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


class HubImages(SplitTasks):
    """Images and labels of a Hugging Face data set per task: `datasets` folders, folders of Parquet files, or names.

    Args:
        paths: task → folder that `save_to_disk` wrote, or with Parquet or Arrow files; or `hf://org/name`, which is
            downloaded, or `hf://org/name/configuration`.
        image: the column with the images.
        label: the column with the classes: ClassLabel, or whole numbers from 0.
        splits: ours (train, validation, test) → the data set's, where it calls them otherwise. A tenth of train, at
            most 5000 images, is set aside as validation where there is none.
        options: those of `SplitTasks`, which adapts on the training images by default.

    Raises:
        MergeError: no such folder or name, no such column or split, the Hub cannot be reached.
    """

    def __init__(
        self,
        paths: dict[str, str],
        image: str = "image",
        label: str = "label",
        splits: dict[SplitName, str] | None = None,
        adapt: SplitName = "train",
        **options: Any,
    ) -> None:
        if not paths:
            raise MergeError("no task: give --data.paths, a data set for every task")
        super().__init__(list(paths), adapt, **options)
        called = CALLED | {split: (name,) for split, name in (splits or {}).items()}
        self._tables = {task: Tables(path, called, (image,), (label,), self.side) for task, path in paths.items()}
        for tables in self._tables.values():
            # Opened now: what is wrong with a data set is wrong with the configuration.
            tables.splits()
            for name in (splits or {}).values():
                tables.find((name,))

    def splits(self, task: str) -> Collection[str]:
        return self._tables[task].splits()

    def open(self, task: str, split: str) -> Split:
        return self._tables[task].read(split)
