"""TextFiles: texts as tokens, labels as rows of heads, and one line for what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_merge import (
    HuggingFaceTextEncoder,
    MergeError,
    MergeWarning,
    TextFiles,
    WeightAveraging,
    build_bank,
    evaluate,
)
from lit_merge.data.texts.tokens import PADDING, SEGMENT, Tokens


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """table(text): the location of a CSV file."""

    def make(text: str, name: str = "a.csv") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make


def test_texts_and_labels(texts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = TextFiles(texts.tables("adapt"), texts.folder("bert"), test=texts.tables("test"), batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == set(texts.tasks)
    for ids in batch.values():
        assert ids.dtype == torch.int32
        assert len(ids) == 4
        assert (ids != PADDING).sum(1).max() == ids.shape[1]
        assert (ids[:, 0] == 2).all()
    source, labels = data.labelled("test")["topic"]
    assert (len(source), labels.tolist()) == (13, [i % 4 for i in range(13)])
    assert source.names([0, 12]) == ["topic-test.csv:0", "topic-test.csv:12"]
    assert "inductive" in data.protocol
    assert "ham: 17 texts in" in capsys.readouterr().err


def test_adaptation_reads_no_label(texts: Any, table: Any) -> None:
    with_labels = table("text,label\nw1 w2,secret\nw3,9\n")
    data = TextFiles({"ham": with_labels}, texts.folder("bert"))
    assert next(iter(data.train_dataloader())).keys() == {"ham"}
    first = data.fingerprint
    changed = TextFiles({"ham": table("text,label\nw1 w2,0\nw3,1\n")}, texts.folder("bert"))
    assert changed.fingerprint == first
    assert TextFiles({"ham": table("text,label\nw1 w2,0\nw4,1\n")}, texts.folder("bert")).fingerprint != first


def test_pairs_and_columns_of_every_task(texts: Any, table: Any) -> None:
    pairs, single = table("q,a\nw1 w2,w3\n", "pairs.csv"), table("t\nw4\n", "single.csv")
    data = TextFiles({"x": pairs, "y": single}, texts.folder("bert"), text={"x": ["q", "a"], "y": "t"}, batch_size=1)
    batch = next(iter(data.train_dataloader()))
    assert batch["x"].tolist() == [[2, 5, 6, 3, 7 + SEGMENT, 3 + SEGMENT]]
    assert batch["y"].tolist() == [[2, 8, 3]]


def test_long_texts_are_cut_and_counted(texts: Any, table: Any, capsys: pytest.CaptureFixture[str]) -> None:
    location = table("text\n" + "w1 " * 16 + "\n" + "w1 " * 30 + "\nw1\n")
    for kind, most in (("bert", 18), ("roberta", 16), ("distilbert", 18)):
        data = TextFiles({"x": location}, texts.folder(kind))
        assert data.unlabelled()["x"].read([0, 1, 2]).shape == (3, most)
        assert f"{1 if most == 18 else 2} of them cut to {most}" in capsys.readouterr().err
    short = TextFiles({"x": location}, texts.folder("bert"), max_length=4)
    assert short.unlabelled()["x"].read([1]).tolist() == [[2, 5, 5, 3]]


@pytest.mark.parametrize(
    ("labels", "classes", "rows"),
    [
        (["0", "1", "0"], None, [0, 1, 0]),
        (["spam", "ham", "spam"], None, [1, 0, 1]),
        (["spam", "ham", "spam"], ["spam", "ham"], [0, 1, 0]),
        (["7", "3", "7"], ["7", "3"], [0, 1, 0]),
    ],
)
def test_labels(labels: list[str], classes: list[str] | None, rows: list[int], texts: Any, table: Any) -> None:
    location = table("text,label\n" + "".join(f"w{i},{label}\n" for i, label in enumerate(labels)))
    names = None if classes is None else {"x": table("\n".join(classes), "names.txt")}
    data = TextFiles({"x": location}, texts.folder("bert"), test={"x": location}, classes=names)
    assert data.labelled("test")["x"][1].tolist() == rows
    data.check_classes("test", lambda task: 2)
    assert "transductive" in data.protocol


def test_names_of_classes_from_the_expert(texts: Any, tmp_path: Path) -> None:
    for folder, names in ((texts.folder("bert", "ham"), ["LABEL_0", "LABEL_1"]), (str(tmp_path), ["a", "b", "c"])):
        (tmp_path / "config.json").write_text(json.dumps({"id2label": {"2": "c", "0": "a", "1": "b"}}))
        data = TextFiles({"x": texts.tables("adapt")["ham"]}, texts.folder("bert"), classes={"x": folder})
        assert data.class_names("x") == names


def test_empty_texts(texts: Any, table: Any) -> None:
    location = table("text,label\nw1,0\n  ,1\nw2,2\n")
    with pytest.raises(MergeError, match="1 of 3 texts are empty, the first in row 1: mend them, or leave them out"):
        TextFiles({"x": location}, texts.folder("bert")).unlabelled()
    data = TextFiles({"x": location}, texts.folder("bert"), test={"x": location}, on_empty="skip", online=True)
    with pytest.warns(MergeWarning, match="1 of 3 texts are empty"):
        source, labels = data.labelled("test")["x"]
    assert (source.names([0, 1]), labels.tolist()) == (["a.csv:0", "a.csv:2"], [0, 2])
    assert data.answers()["x"].classes.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ("w1,3", {}, "row 0 has the label 3, the head of task x has 2 classes, from 0 to 1"),
        ("w1,-1", {}, "row 0 has the label -1, as data sets have whose labels are kept secret"),
        ("w1,", {}, "row 0 has no label"),
        ("w1,a\nw2,b\nw3,c", {}, "names 3 classes of task x (a, b, c), its head has 2"),
        ("w1,a\nw2,b", {"classes": "a\nc"}, "row 1 has the label 'b', which is no class of task x: a, c"),
        ("w1,a", {"classes": "a\na"}, "names 'a' more than once: give every class a name"),
        ("w1,a", {"classes": "\n"}, "holds no name"),
        (
            "w1,a",
            {"label": "class"},
            "has no column 'class'; it has text, label: name another with --data.text or --data.label",
        ),
        ("w1,a", {"label": {"y": "class"}}, "label: no column of task x, there are those of y"),
        ("w1,0", {"text": ["a", "b", "c"]}, "expected the name of one column, or of two for pairs"),
        ("w1,0", {"max_length": 2}, "max_length=2: expected at least 3"),
    ],
)
def test_bad_labels_and_options(rows: str, options: dict[str, Any], said: str, texts: Any, table: Any) -> None:
    location = table(f"text,label\n{rows}\n")
    if "classes" in options:
        options = {"classes": {"x": table(options["classes"], "names.txt")}}
    data = TextFiles({"x": location}, texts.folder("bert"), test={"x": location}, **options)
    with pytest.raises(MergeError) as error:
        data.check_classes("test", lambda task: 2)
    assert said in str(error.value)


def test_bad_tables_and_tokenizers(texts: Any, table: Any, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"nowhere\.csv: no such file or folder"):
        TextFiles({"x": "nowhere.csv"}, texts.folder("bert"))
    with pytest.raises(MergeError, match="no task: give"):
        TextFiles({}, texts.folder("bert"))
    with pytest.raises(MergeError, match="task y has labelled texts but none to adapt on"):
        TextFiles({"x": table("text\na\n")}, texts.folder("bert"), test={"y": table("text\na\n")})
    (tmp_path / "numbers.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(MergeError, match="row 0: text is 5, expected a text"):
        TextFiles({"x": str(tmp_path / "numbers.jsonl")}, texts.folder("bert")).unlabelled()
    with pytest.raises(MergeError, match="holds no tokenizer"):
        Tokens(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MergeError, match="its tokenizer cannot be read"):
        Tokens(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    data = TextFiles({"x": table("text\na\n")}, texts.folder("bert"), classes={"x": str(tmp_path)})
    with pytest.raises(MergeError, match="names no classes"):
        data.class_names("x")


def test_numbers_of_a_table_that_knows_its_classes(texts: Any, table: Any, tmp_path: Path) -> None:
    """They count its own classes, whatever the order of the head's, or of those of another table."""
    from datasets import ClassLabel, Dataset, Features, Value

    places = {}
    for split, names in (("test", ["news", "Sea_Lake", "spam"]), ("validation", ["spam", "news", "sea lake"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        places[split] = str(tmp_path / split)
        Dataset.from_dict({"text": ["w1", "w2", "w3"], "label": [0, 1, 2]}, features).save_to_disk(places[split])
    test, validation = {"x": places["test"]}, {"x": places["validation"]}
    data = TextFiles(test, texts.folder("bert"), test=test, validation=validation)
    assert data.labelled("test")["x"][1].tolist() == [0, 1, 2]
    assert data.labelled("validation")["x"][1].tolist() == [2, 0, 1]
    head = {"x": table("sea lake\nspam\nnews\n", "names.txt")}
    data = TextFiles(test, texts.folder("bert"), test=test, classes=head)
    assert data.labelled("test")["x"][1].tolist() == [2, 0, 1]
    data = TextFiles(test, texts.folder("bert"), test=test, classes={"x": table("a\nb\nnews\n", "names.txt")})
    with pytest.raises(MergeError, match=r"task x: .*'Sea_Lake', 'spam', only the head 'a', 'b'"):
        data.labelled("test")


def test_test_texts_alone_are_enough_to_evaluate(texts: Any) -> None:
    bank = build_bank(texts.experts("bert"), exclude=["classifier*"], method=WeightAveraging())
    network = HuggingFaceTextEncoder(texts.folder("bert"), texts.experts("bert"))
    tested = {"tokenizer": texts.folder("bert"), "test": texts.tables("test")}
    alone = evaluate(bank, network, TextFiles(**tested))
    assert alone == evaluate(bank, network, TextFiles(texts.tables("adapt"), **tested))
    with pytest.raises(MergeError, match=r"^no texts to adapt on: give --data.adapt, a table of texts for every task$"):
        TextFiles(**tested).unlabelled()
    with pytest.raises(MergeError, match=r"^no tokenizer: give --data.tokenizer, the folder of the pretrained model"):
        TextFiles(test=texts.tables("test"))
