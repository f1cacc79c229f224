"""Files of predictions, written row by row: CSV, JSON lines or Parquet."""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lit_merge.checkpoints import replacing
from lit_merge.checkpoints.kinds import Kind
from lit_merge.errors import MergeError

TOP = 5
"""How many classes of every image are written, the most probable first; fewer where a task has fewer."""
COLUMNS = (
    *("task", "index", "file"),
    *(f"class_{i}" for i in range(1, TOP + 1)),
    *(f"probability_{i}" for i in range(1, TOP + 1)),
)
ROUTED = "routed"
"""A last column where weights were chosen input by input: the task that an input was taken for."""
Row = tuple[Any, ...]
"""Values in the order of the columns; None leaves a cell empty."""


class PredictionFile(ABC):
    """A file that takes rows until it is closed. Memory does not grow with their number."""

    @abstractmethod
    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None: ...

    @abstractmethod
    def write(self, rows: Iterable[Row]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class CSVPredictions(PredictionFile):
    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, rows: Iterable[Row]) -> None:
        self._writer.writerows([f"{v:.6f}" if isinstance(v, float) else v for v in row] for row in rows)

    def close(self) -> None:
        self._file.close()


class JSONLinesPredictions(PredictionFile):
    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self._file, self._columns = path.open("w", encoding="utf-8"), columns

    def write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            values = (round(v, 6) if isinstance(v, float) else v for v in row)
            self._file.write(json.dumps(dict(zip(self._columns, values, strict=True)), ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class ParquetPredictions(PredictionFile):
    GROUP = 10_000
    """Rows of a row group: what is held in memory. A group per batch would make files that are slow to read."""

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        import pyarrow
        from pyarrow import parquet

        types = {"index": pyarrow.int64()} | {f"probability_{i}": pyarrow.float32() for i in range(1, TOP + 1)}
        self._schema = pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in columns])
        self._writer = parquet.ParquetWriter(path, self._schema)
        self._table = pyarrow.table
        self._rows: list[Row] = []

    def write(self, rows: Iterable[Row]) -> None:
        self._rows += rows
        if len(self._rows) >= self.GROUP:
            self._write_group()

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        columns = dict(zip(self._schema.names, zip(*self._rows, strict=True), strict=True))
        self._writer.write_table(self._table(columns, schema=self._schema))
        self._rows = []


FORMATS: dict[str, type[PredictionFile]] = {
    ".csv": CSVPredictions,
    ".parquet": ParquetPredictions,
    ".jsonl": JSONLinesPredictions,
}


def prediction_format(path: str | Path) -> type[PredictionFile]:
    """What writes a file of this name.

    Raises:
        MergeError: another suffix; Parquet without pyarrow.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise MergeError(f"{path}: predictions are written as {', '.join(FORMATS)}: choose one of these suffixes")
    if suffix == ".parquet" and find_spec("pyarrow") is None:
        raise MergeError(f"{path}: Parquet needs pyarrow: pip install 'lit_merge[parquet]', or write .csv or .jsonl")
    return FORMATS[suffix]


def _is_predictions(path: Path) -> bool:
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        return _are_columns(parquet.read_schema(path).names)
    with path.open(encoding="utf-8") as file:
        line = file.readline(100_000)
    return _are_columns(json.loads(line) if path.suffix.lower() == ".jsonl" else line.strip().split(","))


def _are_columns(names: Iterable[str]) -> bool:
    return tuple(names) in (COLUMNS, (*COLUMNS, ROUTED))


PREDICTIONS = Kind("predict", _is_predictions)


@contextmanager
def writing(path: str | Path, overwrite: bool = False, routed: bool = False) -> Iterator[PredictionFile]:
    """A file of predictions that stands at `path` when the block succeeds; otherwise what stood there still does. Of
    routed inputs it has the column `routed`.

    Raises:
        MergeError: as `prediction_format` and `check_output`, or the disk is full.
    """
    kind = prediction_format(path)
    with replacing(path, overwrite, PREDICTIONS) as draft:
        # What a killed run leaves must not look whole, not by its name either.
        part = draft.with_name(f"{draft.name}.part")
        file = kind(part, (*COLUMNS, ROUTED) if routed else COLUMNS)
        try:
            yield file
        finally:
            file.close()
        part.rename(draft)
