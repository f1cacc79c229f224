"""Columns of tables: CSV, TSV, JSON lines, Parquet, and what `datasets` reads."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_merge.checkpoints.input_file import InputFile, memory
from lit_merge.checkpoints.input_stream import InputStream
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.locations import resolve
from lit_merge.data.datasets_tables import NAME_ONE, is_hub, place_and_split, read_dataset
from lit_merge.errors import MergeError

Columns = dict[str, list[Any]]
# Texts may be longer than what the csv module takes for a mistake.
LONGEST_FIELD = 1 << 30
# Bytes that a value of a table takes in memory, at least.
VALUE = 64


@dataclass(frozen=True)
class Table:
    """Some columns of a table, all of one length.

    Attributes:
        location: what it was read from.
        columns: name → values; None where a value is missing.
        class_names: name of a column of classes → their names, where the table knows them.
    """

    location: str
    columns: Columns
    class_names: dict[str, list[str]] = field(default_factory=dict)


def read_table(location: str, columns: Sequence[str], encoding: str = "utf-8") -> Table:
    """Reads some columns, and keeps nothing of the others.

    Args:
        location: a .csv, .tsv, .jsonl or .parquet file; a folder that `datasets` saved or reads; or `hf://org/name`,
            with `/configuration` behind it where there are several. `#split` behind a data set names one of its splits.
        columns: which.
        encoding: of .csv, .tsv and .jsonl.

    Raises:
        MergeError: nothing there, an unknown suffix, no such column, text in another encoding, a row with too many or
            too few values, a line that is no JSON, no row at all.
    """
    if is_hub(location) or resolve(place_and_split(location)[0]).is_dir():
        found, names = read_dataset(location, columns)
        table = Table(location, found, names)
    else:
        path = resolve(location)
        if not path.is_file():
            raise MergeError(f"{path}: no such file")
        if path.suffix.lower() not in READERS:
            raise MergeError(f"{path}: expected one of {', '.join(READERS)}, or a folder that datasets reads")
        table = Table(location, READERS[path.suffix.lower()](path, columns, encoding))
    if not len(next(iter(table.columns.values()))):
        raise MergeError(f"{location} is empty: it holds no row")
    return table


def check_columns(location: str | Path, columns: Sequence[str], there: Sequence[str]) -> None:
    """Raises MergeError where a table has no such column."""
    for name in columns:
        if name not in there:
            message = ", ".join(map(str, there)) or "none"
            raise MergeError(f"{location} has no column {name!r}; it has {message}: {NAME_ONE}")


def read_text(path: Path, encoding: str) -> str:
    """The text of a file.

    Raises:
        MergeError: it cannot be read, is larger than memory, or is in another encoding.
    """
    try:
        content = InputFile(path, "a text").text("a text that fits into this machine's memory", memory() // 4)
        return content.decode("utf-8-sig" if encoding.lower().replace("_", "-") == "utf-8" else encoding)
    except LookupError as error:
        raise MergeError(f"encoding={encoding!r}: there is no such encoding") from error
    except UnicodeDecodeError as error:
        raise MergeError(
            f"{path} is no text in {encoding}: {error.reason} at byte {error.start}: set the data's encoding"
        ) from error


def _read_csv(path: Path, columns: Sequence[str], encoding: str) -> Columns:
    return _read_rows(path, columns, csv.reader(io.StringIO(read_text(path, encoding), newline=""), strict=True))


def _read_tsv(path: Path, columns: Sequence[str], encoding: str) -> Columns:
    # Tab-separated values know no quotes: one that opens a text is a letter of it.
    text = io.StringIO(read_text(path, encoding), newline="")
    return _read_rows(path, columns, csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))


def _read_rows(path: Path, columns: Sequence[str], reader: Any) -> Columns:
    csv.field_size_limit(LONGEST_FIELD)
    found: Columns = {name: [] for name in columns}
    try:
        header = next(reader, None)
        if header is None:
            raise MergeError(f"{path} is empty: expected a first line with the names of the columns")
        check_columns(path, columns, header)
        places = {name: header.index(name) for name in columns}
        for row in reader:
            if not row:
                continue  # a blank line, as files end with
            if len(row) != len(header):
                raise MergeError(
                    f"{path}: the row that ends in line {reader.line_num} has {len(row)} values, the first line names "
                    f"{len(header)} columns: mend its separators and quotes"
                )
            for name, place in places.items():
                found[name].append(row[place])
    except csv.Error as error:
        raise MergeError(f"{path}: line {reader.line_num}: {error}") from error
    return found


def _read_json_lines(path: Path, columns: Sequence[str], encoding: str) -> Columns:
    found: Columns = {name: [] for name in columns}
    for number, row in _objects(path, read_text(path, encoding)):
        check_columns(f"{path}: line {number}", columns, list(row))
        for name in columns:
            found[name].append(row[name])
    return found


def _objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines: it breaks at letters that JSON allows inside texts.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise MergeError(f"{path}: line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise MergeError(f"{path}: line {number} is no JSON object, but a {type(row).__name__}")
        yield number, row


def _read_parquet(path: Path, columns: Sequence[str], encoding: str) -> Columns:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise MergeError(f"{path}: Parquet needs pyarrow: pip install 'lit_merge[parquet]'") from error
    source = InputFile(path, "a table")
    try:
        found = parquet.read_metadata(InputStream(source))
        # A few bytes can stand for any number of equal values.
        if (size := found.num_rows * len(columns) * VALUE) > memory():
            raise MergeError(f"{path} has {found.num_rows:,} rows, which take {size:,} bytes: more than the memory")
        check_columns(path, columns, parquet.read_schema(InputStream(source)).names)
        table = parquet.read_table(InputStream(source), columns=list(columns))
    except (OSError, ArrowException) as error:
        raise MergeError(f"{path} cannot be read as Parquet: {' '.join(str(error).split())}") from error
    return {name: table.column(name).to_pylist() for name in columns}


READERS: dict[str, Callable[[Path, Sequence[str], str], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
}
