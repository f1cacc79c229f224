"""One result in four forms that agree."""

import csv
import io
import json

import pytest

from lit_merge import Suite
from lit_merge.report.report import Report
from lit_merge.report.scores import TaskScore

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
    # Nothing is cut to fit.
    assert {"pretrained", "expert", "adapted", "normalised", "static", "entropy"} <= set(text.split())
    assert "…" not in text.replace("CART(…)", "")


def test_columns_that_were_not_measured_are_left_out() -> None:
    text = Report("bank", "p", {"static": SCORES["static"]}, split="validation").to_text()
    for absent in ("adapted", "pretrained", "expert", "normalised"):
        assert absent not in text
    assert "validation" in text


def test_the_shipped_suite_fits_in_eighty_columns() -> None:
    tasks = Suite("zoo:8").tasks
    scores = {state: dict.fromkeys(tasks, TaskScore(1.0, 1.234, 500)) for state in SCORES}
    text = Report("CART", "inductive", scores).to_text(80)
    rows = [line for line in text.splitlines() if line.strip().startswith((*tasks, "mean"))]
    assert len(rows) == 9
    assert all(row.split()[1:] == ["100.0"] * 4 + ["1.234"] * 2 + ["100.0"] for row in rows)


def test_long_names_break_and_numbers_do_not() -> None:
    name = "a_task_with_a_name_of_many_words"
    scores = {state: {name: TaskScore(0.125, 1.234, 500)} for state in SCORES}
    text = Report("CART", "inductive", scores).to_text(80)
    assert "…" not in text
    assert text.count("12.5") == 8
    assert max(len(line) for line in text.splitlines()) <= 80
    # In pieces, one under the other, between heading and mean.
    body = text[text.index("─") : text.index("mean")].splitlines()[1:]
    assert "".join(line.split()[0] for line in body if line.strip()) == name


def test_normalised_accuracy_is_of_the_adapted_merge_or_else_of_the_static_one() -> None:
    static = Report("m", "p", {state: SCORES[state] for state in ("static", "expert")})
    assert static.normalised("one") == 0.5
    assert Report("m", "p", dict(SCORES)).normalised("one") == 0.75
    assert Report("m", "p", {"static": SCORES["static"]}).normalised("one") is None


def test_an_expert_that_is_never_right() -> None:
    scores = {"adapted": {"a": TaskScore(0.5, 1.0, 4)}, "expert": {"a": TaskScore(0.0, 1.0, 4)}}
    report = Report("m", "p", scores)
    assert report.normalised("a") is None
    assert json.loads(report.to_json())["tasks"]["a"]["expert_accuracy"] == 0.0
    assert "50.0" in report.to_text()
    assert "a,0.5,0.0" in report.to_csv()


def test_sizes_in_words() -> None:
    assert Report("m", "p").size_line() == ""
    assert Report("m", "p", sizes={"bank": 2_500_000}).size_line() == "A task bank 2.5 MB."
    both = Report("m", "p", sizes={"bank": 2_500_000, "experts": 10_000_000}).size_line()
    assert both == "Experts together 10.0 MB, task bank 2.5 MB: 25% of that."


def test_a_run_without_labelled_images_has_no_scores() -> None:
    report = Report("CART of 2", "adapted on folders", {}, {"bank": 1_000_000})
    assert json.loads(report.to_json())["tasks"] == {}
    assert report.to_csv() == "task\n"
    text = report.to_text(80)
    assert "CART of 2" in text
    assert "1.0 MB" in text
    assert "no labelled" in text


def test_a_task_whose_stream_has_no_labels_is_left_out_of_the_online_mean() -> None:
    report = Report("CART", "online", SCORES | {"online": {"one": TaskScore(0.6, float("nan"), 40)}})
    assert report.states == ["pretrained", "static", "online", "adapted", "expert"]
    assert report.row("another_task")["online_accuracy"] is None
    assert report.mean_row()["online_accuracy"] == json.loads(report.to_json())["mean"]["online"] == 0.6
    assert "online_entropy" not in report.row("one")
    renamed = {
        state: {"georgian" if t == "one" else t: s for t, s in scores.items()}
        for state, scores in report.scores.items()
    }
    text = Report("CART", "online", renamed).to_text(80)
    assert {"georgian", "pre-", "trained", "online", "norm.", "60.0"} <= set(text.split())
    assert "–" in report.to_text()
