"""The text suite's scripts: splits, docstrings, and the rules that are compared. Nothing is downloaded or trained."""

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from text_suite import packages, rules
from text_suite.docstrings import paragraphs
from text_suite.records import Record, load_records
from text_suite.splits import SPLITS, Text, make_splits, plain

from lit_merge.choose.sweep import Point


def rows(groups: int, classes: int = 3) -> list[Text]:
    """Four texts of every group, whose letters are its own."""
    letters = ["".join(chr(97 + int(digit)) for digit in f"{i:05d}") for i in range(4 * groups)]
    return [Text(word, f"class {i % classes}", f"group {i // 4}") for i, word in enumerate(letters)]


@given(st.integers(20, 80))
@settings(max_examples=20, deadline=None)
def test_groups_stay_together_and_texts_are_unique(groups: int) -> None:
    source = rows(groups)
    # The same text again, written otherwise, in a group of its own.
    source += [Text(f"{source[0].text.upper()} 1!", "class 0", "another group")]
    found = make_splits("task", source, train=10_000, least=1)
    where = {plain(text): split for split, texts in found.splits.items() for text, _ in texts}
    assert len(where) == 4 * groups == sum(len(texts) for texts in found.splits.values())
    for group in range(1, groups):
        assert len({where[row.text] for row in source if row.group == f"group {group}"}) == 1
    labels = {row.text: row.label for row in source}
    for text, label in (one for texts in found.splits.values() for one in texts):
        assert found.classes[label] == labels.get(text, "class 0")


def test_splits_are_even_and_no_longer_than_asked_for() -> None:
    found = make_splits("task", rows(4000), train=900, least=1)
    sizes = {split: len(texts) for split, texts in found.splits.items()}
    assert sizes == {split: 900 if split == "train" else most for split, (_, most) in SPLITS.items()}
    for texts in found.splits.values():
        counts = [sum(label == one for _, label in texts) for one in range(3)]
        assert max(counts) - min(counts) <= 1


def test_small_classes_are_left_out() -> None:
    source = [*rows(40), Text("alone", "rare", "alone")]
    assert make_splits("task", source, train=100, least=2).classes == ["class 0", "class 1", "class 2"]


def test_docstrings_hide_their_library() -> None:
    source = b'def f():\n    """Numpy arrays of numpy.ndarray kind are made here.\n\n    Not this.\n    """\n'
    source += b'class A:\n    """Too short a text."""\n'
    (found,) = paragraphs(source, "numpy", "numpy/core.py")
    assert found == Text("it arrays of it.ndarray kind are made here.", "numpy", "numpy/core.py")
    assert not list(paragraphs(source, "numpy", "numpy/tests/test_core.py"))
    assert not list(paragraphs(b"print 1", "numpy", "numpy/old.py"))


def test_archives_are_known_by_name_and_version(tmp_path: Path) -> None:
    for name in ("scikit_learn-1.9.1-cp311-cp311-manylinux_2_28_x86_64.whl", "vaderSentiment-0.5.zip"):
        (tmp_path / name).touch()
    assert packages.archive(tmp_path, "scikit-learn==1.9.1") == tmp_path / (
        "scikit_learn-1.9.1-cp311-cp311-manylinux_2_28_x86_64.whl"
    )
    assert packages.archive(tmp_path, packages.RATED) == tmp_path / "vaderSentiment-0.5.zip"
    assert packages.archive(tmp_path, "scikit-learn==1.9.2") is None


def logits(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


def test_criteria_on_two_texts() -> None:
    merged, expert = logits([0.5, 0.5], [0.1, 0.9]), logits([0.8, 0.2], [0.6, 0.4])
    found = {name: function(merged, expert) for name, function in rules.CRITERIA.items()}

    def h(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    def kl(p: float, q: float) -> float:
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    expected = {
        "entropy": (h(0.5) + h(0.1)) / 2,
        # Of two equal probabilities the first is taken, as the expert does.
        "disagreement": 0.5,
        "KL(expert, merge)": (kl(0.8, 0.5) + kl(0.6, 0.1)) / 2,
        "KL(merge, expert)": (kl(0.5, 0.8) + kl(0.1, 0.6)) / 2,
        "loss on the expert's classes": -(math.log(0.5) + math.log(0.1)) / 2,
        "soft disagreement": 1 - (0.5 + 0.06 + 0.36) / 2,
        "1 − p(expert's class)": 1 - (0.5 + 0.1) / 2,
        "entropy gap": abs(h(0.5) + h(0.1) - h(0.8) - h(0.6)) / 2,
        "−information": (h(0.5) + h(0.1)) / 2 - h(0.3),
    }
    assert found == pytest.approx(expected, abs=1e-5)


def record(ratio: float, scaling: float, sharpness: float, right: bool, accuracy: float, rule: str = "grid") -> Record:
    """Predictions of a sharpness that agree with the expert's, class 0, or do not."""
    sign = 1.0 if right else -1.0
    value = torch.tensor([[sharpness * sign, 0.0]]).expand(4, 2)
    return Record(Point("CART", ratio, scaling, rule, accuracy, 9.0, 9.0, 0.9), {"task": value})


def test_every_rule_takes_what_it_should(tmp_path: Path) -> None:
    made = [
        record(0.04, 1.0, 1.0, True, 0.5),
        record(0.04, 2.0, 5.0, False, 0.3),
        record(0.16, 1.0, 2.0, True, 0.7),
        record(0.16, 2.0, 3.0, True, 0.6),
        record(0.16, 1.3, 0.5, True, 0.6, "self_consistent"),
    ]
    for one in made:
        one.save(tmp_path)
    study = rules.Study(
        load_records(tmp_path), {"task": torch.tensor([[4.0, 0.0]]).expand(4, 2)}, {"task": torch.arange(2)}
    )
    found = {rule: (point.rank_ratio, point.scaling) for rule, point in study.choices().items()}
    assert found["labels"] == (0.16, 1.0)
    assert found["agreement"] == (0.16, 2.0)
    assert found["entropy, rank by agreement"] == (0.16, 2.0)
    assert found["entropy alone"] == (0.04, 2.0)
    assert found["self-consistent, rank by agreement"] == (0.16, 1.3)
    assert found["KL(expert, merge)"] == (0.16, 2.0)
    assert study.by_two("entropy", "disagreement").key == study.choices()["entropy, rank by agreement"].key
