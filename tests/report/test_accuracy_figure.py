"""The figure shows the numbers of the report."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from lit_merge import MergeError
from lit_merge.report.accuracy_figure import COLOURS, accuracy_figure
from lit_merge.report.figure_files import save_both, save_figure
from lit_merge.report.report import STATES, Report
from lit_merge.report.scores import TaskScore

pytestmark = pytest.mark.pictures
SCORES = {
    "expert": {"one": TaskScore(1.0, 0.1, 40), "another_task": TaskScore(0.875, 0.2, 10)},
    "pretrained": {"one": TaskScore(0.25, 1.5, 40), "another_task": TaskScore(0.5, 1.0, 10)},
    "static": {"one": TaskScore(0.5, 1.0, 40), "another_task": TaskScore(0.6, 0.9, 10)},
    "online": {"one": TaskScore(0.7, 0.6, 40), "another_task": TaskScore(0.65, 0.8, 10)},
    "first": {"one": TaskScore(0.72, 0.5, 40), "another_task": TaskScore(0.68, 0.8, 10)},
    "routed": {"one": TaskScore(0.8, 0.5, 40), "another_task": TaskScore(0.7, 0.8, 10)},
    "adapted": {"one": TaskScore(0.75, 0.5, 40), "another_task": TaskScore(0.7, 0.8, 10)},
}


def marks(axes: Any) -> dict[str, Any]:
    """State → its marks, (accuracy in %, row)."""
    return {str(one.get_label()): one for one in axes.collections if one.get_label() in STATES}


def test_marks_are_the_accuracies_of_the_report(tmp_path: Path) -> None:
    report = Report("CART of 2 experts", "inductive", dict(SCORES))
    (tmp_path / "metrics.json").write_text(report.to_json())
    # From the run's folder, too.
    for run in (report, tmp_path):
        figure = accuracy_figure(run)
        (axes,) = figure.axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "another_task", "mean"]
        assert list(marks(axes)) == [state for state in STATES if state in COLOURS]
        for state, found in marks(axes).items():
            one, other = (SCORES[state][task].accuracy for task in ("one", "another_task"))
            expected = [(100 * one, 0), (100 * other, 1), (50 * (one + other), 2)]
            assert found.get_offsets().tolist() == [pytest.approx(point) for point in expected]
            assert {to_hex(colour) for colour in found.get_facecolor()} == {COLOURS[state]}
        # The first task is above.
        assert axes.yaxis_inverted()
        assert figure.get_suptitle() == "CART of 2 experts"


def test_states_that_were_not_measured_have_no_marks() -> None:
    (axes,) = accuracy_figure(Report("m", "p", {"static": SCORES["static"]})).axes
    assert list(marks(axes)) == ["static"]
    online = {
        state: {t: SCORES[state][t] for t in tasks}
        for state, tasks in (("static", SCORES["static"]), ("online", ["one"]))
    }
    (axes,) = accuracy_figure(Report("m", "p", online)).axes
    assert [row for _, row in marks(axes)["online"].get_offsets()] == [0, 2]


def test_a_folder_without_results(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(MergeError, match="holds no results of a run"):
        accuracy_figure(tmp_path)


@pytest.mark.parametrize("tasks", [1, 20])
def test_the_file_is_a_picture_that_can_be_looked_at(tasks: int, tmp_path: Path) -> None:
    names = [f"a_task_with_quite_a_long_name_number_{i}" for i in range(tasks)]
    scores = {state: {name: TaskScore(0.1 * i + 0.2, 1.0, 1) for name in names} for i, state in enumerate(SCORES)}
    figure, path = accuracy_figure(Report("CART", "p", scores)), tmp_path / "accuracy.png"
    save_both(figure, tmp_path, "accuracy")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert 1000 <= picture.width <= 1400
        assert 200 <= picture.height <= 1200
        colours = {to_hex([c / 255 for c in pixel]) for _, pixel in picture.convert("RGB").getcolors(1 << 20)}
    assert set(COLOURS.values()) <= colours
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(one.y0 > other.y1 for one, other in pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0
    assert "<svg" in (tmp_path / "accuracy.svg").read_text(encoding="utf-8")[:500]
    with pytest.raises(MergeError, match="exists"):
        save_figure(accuracy_figure(Report("CART", "p", scores)), path)
