"""One result in four forms that agree."""

import csv
import io
import json

import pytest

from lit_merge.evaluation import TaskScore
from lit_merge.figures import accuracy_figure, save_figure
from lit_merge.report import Report

SCORES = {
    "pretrained": {"one": TaskScore(0.25, 1.5, 40), "another_task": TaskScore(0.5, 1.0, 10)},
    "static": {"one": TaskScore(0.5, 1.0, 40), "another_task": TaskScore(0.6, 0.9, 10)},
    "adapted": {"one": TaskScore(0.75, 0.5, 40), "another_task": TaskScore(0.7, 0.8, 10)},
    "expert": {"one": TaskScore(1.0, 0.1, 40), "another_task": TaskScore(0.875, 0.2, 10)},
}


@pytest.fixture
def report() -> Report:
    return Report("CART(…) of 2 experts", "inductive", dict(SCORES), {"experts": 4_000_000, "bank": 1_000_000})


def test_forms_agree(report: Report) -> None:
    read = json.loads(report.to_json())
    rows = {row["task"]: row for row in csv.DictReader(io.StringIO(report.to_csv()))}
    assert list(rows) == ["one", "another_task", "mean"]
    for task in ("one", "another_task"):
        for key, value in read["tasks"][task].items():
            assert float(rows[task][key]) == value
    assert read["mean"] == {"pretrained": 0.375, "static": 0.55, "adapted": 0.725, "expert": 0.9375}
    assert float(rows["mean"]["normalised_accuracy"]) == pytest.approx((0.75 + 0.8) / 2)
    text = report.to_text(80)
    for shown in ("75.0", "72.5", "0.650", "80.0", "4.0 MB", "1.0 MB", "25%"):
        assert shown in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_columns_that_were_not_measured_are_left_out() -> None:
    text = Report("bank", "p", {"static": SCORES["static"]}, split="validation").to_text()
    for absent in ("adapted", "pretrained", "expert", "normalised"):
        assert absent not in text
    assert "validation" in text


def test_figure_draws_what_the_report_says(report: Report, tmp_path: object) -> None:
    figure = accuracy_figure(report)
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([25, 50, 37.5, 50, 60, 55, 75, 70, 72.5, 100, 87.5, 93.75])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "another_task", "mean"]
    path = tmp_path / "figure.png"  # type: ignore[operator]
    save_figure(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
