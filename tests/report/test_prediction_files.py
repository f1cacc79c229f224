"""The same rows in every format, whole or not at all."""

import csv
import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lit_merge import MergeError
from lit_merge.report import prediction_files
from lit_merge.report.prediction_files import COLUMNS, ParquetPredictions, writing

ROWS = [
    ("alpha", 0, "a, b/é.png", "one", "two", None, None, None, 0.75, 0.25, None, None, None),
    ("beta", 12, None, "3", "1", "0", "2", "4", 0.5, 0.2, 0.125, 0.1, 0.075),
]


def write(path: Path, batches: int = 1) -> None:
    with writing(path) as file:
        for _ in range(batches):
            file.write(iter(ROWS))


def test_csv(tmp_path: Path) -> None:
    write(tmp_path / "p.csv")
    header, first, second = csv.reader((tmp_path / "p.csv").read_text(encoding="utf-8").splitlines())
    assert tuple(header) == COLUMNS
    assert first == ["alpha", "0", "a, b/é.png", "one", "two", "", "", "", "0.750000", "0.250000", "", "", ""]
    assert second[8:] == ["0.500000", "0.200000", "0.125000", "0.100000", "0.075000"]


def test_json_lines(tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl")
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == ROWS
    assert tuple(json.loads(lines[0])) == COLUMNS


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(ParquetPredictions, "GROUP", 4)
    write(tmp_path / "p.parquet", batches=5)
    table = parquet.read_table(tmp_path / "p.parquet")
    assert tuple(table.column_names) == COLUMNS
    assert [tuple(row.values())[:8] for row in table.to_pylist()] == [row[:8] for row in 5 * ROWS]
    assert table["probability_3"].to_pylist()[:2] == [None, 0.125]
    # Groups are written when they are full: memory holds one.
    assert parquet.ParquetFile(tmp_path / "p.parquet").num_row_groups == 3


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_no_row(suffix: str, tmp_path: Path) -> None:
    if suffix == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / f"p.{suffix}"
    write(path, batches=0)
    if suffix == "parquet":
        assert parquet.read_table(path).num_rows == 0
    else:
        assert path.read_text() == (",".join(COLUMNS) + "\n" if suffix == "csv" else "")


OLD = ",".join(COLUMNS) + "\n"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"

    def fail() -> None:
        with writing(path, overwrite=True) as file:
            file.write(ROWS)
            raise RuntimeError("broken")

    path.write_text("mine")
    with pytest.raises(MergeError, match="was not written by `lit-merge predict`"):
        fail()
    path.write_text(OLD)
    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert path.read_text() == OLD
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from lit_merge.report.prediction_files import writing
with writing(sys.argv[1], overwrite=True) as file:
    for _ in range(1000):
        file.write([("alpha", 0, "a.png") + 5 * ("one",) + 5 * (0.2,)])
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_killed_process_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(OLD)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.read_text() == OLD
    assert list(tmp_path.rglob("*.csv")) == [path]
    # It was at work.
    (part,) = tmp_path.rglob("*.part")
    assert part.stat().st_size > 0


@pytest.mark.parametrize("name", ["p.txt", "p", "p.csv.gz"])
def test_another_suffix(name: str, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"\.csv, \.parquet, \.jsonl"), writing(tmp_path / name):
        pass
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> Any:
        return None if name == "pyarrow" else find_spec(name)

    monkeypatch.setattr(prediction_files, "find_spec", find)
    with pytest.raises(MergeError, match=r"pip install 'lit_merge\[parquet\]'"):
        prediction_files.prediction_format("p.parquet")
