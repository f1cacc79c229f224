"""The figure shows the numbers of the report."""

from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from lit_merge import MergeError
from lit_merge.report.accuracy_figure import COLOURS, accuracy_figure, save_figure
from lit_merge.report.report import STATES, Report
from lit_merge.report.scores import TaskScore

pytestmark = pytest.mark.pictures
SCORES = {
    "expert": {"one": TaskScore(1.0, 0.1, 40), "another_task": TaskScore(0.875, 0.2, 10)},
    "pretrained": {"one": TaskScore(0.25, 1.5, 40), "another_task": TaskScore(0.5, 1.0, 10)},
    "static": {"one": TaskScore(0.5, 1.0, 40), "another_task": TaskScore(0.6, 0.9, 10)},
    "online": {"one": TaskScore(0.7, 0.6, 40), "another_task": TaskScore(0.65, 0.8, 10)},
    "adapted": {"one": TaskScore(0.75, 0.5, 40), "another_task": TaskScore(0.7, 0.8, 10)},
}


def test_bars_are_the_accuracies_of_the_report() -> None:
    report = Report("CART of 2 experts", "inductive", dict(SCORES))
    figure = accuracy_figure(report)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "another_task", "mean"]
    assert [container.get_label() for container in axes.containers] == list(STATES)
    for state, container in zip(STATES, axes.containers, strict=True):
        one, other = (SCORES[state][task].accuracy for task in ("one", "another_task"))
        heights = [bar.get_height() for bar in container]
        assert heights == pytest.approx([100 * one, 100 * other, 50 * (one + other)])
        assert {to_hex(bar.get_facecolor()) for bar in container} == {COLOURS[state]}
        # A group of bars stands over its task's name.
        assert [round(bar.get_x() + bar.get_width() / 2) for bar in container] == [0, 1, 2]
    assert axes.get_ylim() == (0, 100)
    assert axes.get_title(loc="left") == "CART of 2 experts"


def test_states_that_were_not_measured_have_no_bars() -> None:
    (axes,) = accuracy_figure(Report("m", "p", {"static": SCORES["static"]})).axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([50, 60, 55])


@pytest.mark.parametrize("tasks", [1, 20])
def test_the_file_is_a_picture_that_can_be_looked_at(tasks: int, tmp_path: Path) -> None:
    scores = {state: {f"task_number_{i}": TaskScore(0.5, 1.0, 1) for i in range(tasks)} for state in SCORES}
    path = tmp_path / "accuracy.png"
    save_figure(accuracy_figure(Report("CART", "p", scores)), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert 800 <= picture.width <= 4000
        assert 500 <= picture.height <= 1000
        colours = {to_hex([c / 255 for c in pixel]) for _, pixel in picture.convert("RGB").getcolors(1 << 20)}
    assert set(COLOURS.values()) <= colours
    with pytest.raises(MergeError, match="exists"):
        save_figure(accuracy_figure(Report("CART", "p", scores)), path)
