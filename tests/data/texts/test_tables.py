"""Tables: the columns that are asked for, and one line for what cannot be read."""

import os
from pathlib import Path
from typing import Any

import pytest

from lit_merge import MergeError
from lit_merge.data.texts import tables
from lit_merge.data.texts.tables import read_table

ROWS = {"text": ["a, b", 'say "c"', "é\u2028f"], "label": [0, 2, 1]}


def dataset(**columns: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(columns or ROWS)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "saved", "splits"])
def test_every_kind(kind: str, tmp_path: Path) -> None:
    import datasets

    path = tmp_path / f"table.{kind}"
    if kind == "csv":
        path.write_bytes('\ufefftext,id,label\r\n"a, b",x,0\r\n"say ""c""",y,2\r\né\u2028f,z,1\r\n\r\n'.encode())
    elif kind == "tsv":
        path.write_text('label\ttext\n0\ta, b\n2\tsay "c"\n1\té\u2028f\n')
    elif kind == "jsonl":
        dataset().to_json(path, force_ascii=False)
        path.write_text(path.read_text() + "\n")
    elif kind == "parquet":
        dataset().to_parquet(path)
    elif kind == "saved":
        dataset().save_to_disk(path)
    else:
        datasets.DatasetDict({"train": dataset(text=["no"], label=[0]), "test": dataset()}).save_to_disk(path)
    location = f"{path}#test" if kind == "splits" else str(path)
    table = read_table(location, ["text", "label"])
    assert table.columns["text"] == ROWS["text"]
    assert [int(value) for value in table.columns["label"]] == ROWS["label"]
    assert read_table(location, ["text"]).columns.keys() == {"text"}


def test_a_folder_that_datasets_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MERGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    dataset().to_parquet(tmp_path / "data" / "test-00000.parquet")
    assert read_table(str(tmp_path / "data"), ["text"]).columns["text"] == ROWS["text"]


def test_names_of_classes(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}, features=features).save_to_disk(tmp_path / "data")
    table = read_table(str(tmp_path / "data"), ["label"])
    assert (table.columns, table.class_names) == ({"label": [1]}, {"label": ["no", "yes"]})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"text,label\na,1\nb\n", "the row that ends in line 3 has 1 values, the first line names 2 columns"),
        ("a.csv", b'text\n"a\nb', "line 3: unexpected end of data"),
        ("a.csv", b"words,label\na,1\n", "a.csv has no column 'text'; it has words, label"),
        ("a.csv", b"text\n\xff\n", "no text in utf-8: invalid start byte at byte 5: set the data's encoding"),
        ("a.csv", b"", "is empty: expected a first line with the names of the columns"),
        ("a.csv", b"text,label\n", "a.csv is empty: it holds no row"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "line 3 is no JSON: "),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 is no JSON object, but a list"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2 has no column 'text'; it has txt"),
        ("a.parquet", b"PAR", "cannot be read as Parquet"),
        ("a.xls", b"text", "expected one of .csv, .tsv, .jsonl, .json, .parquet, or a folder"),
    ],
)
def test_broken_files(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MergeError) as error:
        read_table(str(tmp_path / name), ["text"])
    assert said in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_broken_data_sets(tmp_path: Path) -> None:
    import datasets

    path = str(tmp_path / "data")
    datasets.DatasetDict({"train": dataset(), "test": dataset()}).save_to_disk(path)
    with pytest.raises(MergeError, match=r"several splits, it has train, test: write .*data#train"):
        read_table(path, ["text"])
    with pytest.raises(MergeError, match="no split 'dev', it has train, test"):
        read_table(f"{path}#dev", ["text"])
    with pytest.raises(MergeError, match="has no split 'test', it has train"):
        read_table(f"{path}/test#test", ["text"])
    with pytest.raises(MergeError, match=r"has no column 'words'; .*: name another with --data\.text"):
        read_table(f"{path}#test", ["words"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MergeError, match="empty cannot be read as a data set: "):
        read_table(str(tmp_path / "empty"), ["text"])
    with pytest.raises(MergeError, match="hf://nobody/nothing cannot be loaded: "):
        read_table("hf://nobody/nothing", ["text"])


def test_tables_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are looked at before anything is read: a few bytes of Parquet hold any number of equal values."""
    monkeypatch.setattr(tables, "memory", lambda: 2000)
    for name, content in (("a.csv", "x\n" + "1\n" * 300), ("a.jsonl", '{"x": 1}\n' * 60)):
        (tmp_path / name).write_text(content)
        with pytest.raises(MergeError, match=f"{name} has .* expected a text that fits into this machine's memory"):
            read_table(str(tmp_path / name), ["x"])
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"x": [1] * 100, "y": [2] * 100}), tmp_path / "a.parquet")
    with pytest.raises(MergeError, match=r"a\.parquet has 100 rows, which take 6,400 bytes: more than the memory"):
        read_table(str(tmp_path / "a.parquet"), ["x"])
    monkeypatch.setattr(tables, "memory", lambda: 8000)
    assert read_table(str(tmp_path / "a.parquet"), ["y"]).columns == {"y": [2] * 100}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        os.mkfifo(tmp_path / f"pipe.{suffix}")
        with pytest.raises(MergeError, match=rf"pipe\.{suffix}"):
            read_table(str(tmp_path / f"pipe.{suffix}"), ["x"])
