"""The curves of a run are what its files say."""

from pathlib import Path

import pytest

from lit_merge import MergeError
from lit_merge.report.report import Report
from lit_merge.report.run_folder import RunFolder
from lit_merge.report.training_figure import training_figure

LOG = (
    "coefficient,coefficient/a,coefficient/b,kept_step,loss,loss/a,loss/b,step\n1.5,1,2,,0.9,0.8,1,9\n1,1,1,10,,,,19\n"
)
GUARD = "step,task,entropy,balance,agreement,churn\n0,a,1.2,.9,.5,0\n0,b,1,.8,,0\n10,a,.6,.9,.7,.1\n10,b,.4,.8,.9,.1\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "metrics.csv").write_text(LOG)
    (tmp_path / "guard.csv").write_text(GUARD)
    report = Report("CART of 2", "inductive", kept={"step": 10, "at": 20, "why": "it went on for too long"})
    (tmp_path / "metrics.json").write_text(report.to_json())
    return tmp_path


def test_a_line_per_task_and_their_mean(run: Path) -> None:
    found = {}
    for axes in training_figure(run).axes:
        lines = {str(line.get_label()): line for line in axes.get_lines()}
        found[axes.get_title(loc="left")] = {
            label: list(zip(line.get_xdata(), line.get_ydata(), strict=True))
            for label, line in lines.items()
            if label in ("mean", "a", "b")
        }
        assert list(lines["step that was kept"].get_xdata()) == [10, 10]
    assert found["objective, on the batches"] == {"mean": [(9, 0.9)], "a": [(9, 0.8)], "b": [(9, 1)]}
    entropy = found["entropy (nats), on the guard's inputs"]
    assert entropy["a"] == [(0, 1.2), (10, 0.6)]
    assert entropy["mean"] == [(0, pytest.approx(1.1)), (10, pytest.approx(0.5))]
    # What was not asked has no point.
    assert found["agreement (%), on the guard's inputs"]["b"] == [(10, pytest.approx(90))]
    assert found["coefficient λ, mean over weights"]["mean"] == [(9, 1.5), (19, 1)]


def test_a_run_without_log_or_guard(run: Path) -> None:
    (run / "guard.csv").unlink()
    assert len(training_figure(run).axes) == 2
    (run / "log" / "metrics.csv").unlink()
    assert not any(axes.get_lines() for axes in training_figure(run).axes)


def test_damage_is_named(run: Path, tmp_path: Path) -> None:
    (run / "guard.csv").write_text("step,task,entropy\n0,a,lots\n")
    with pytest.raises(MergeError, match=r"guard.csv is damaged"):
        training_figure(run)
    with pytest.raises(MergeError, match=r"is no run: give a folder that `fit` has written"):
        RunFolder(tmp_path / "log")
