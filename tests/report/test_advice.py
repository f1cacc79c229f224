"""Advice comes where a fit has brought little, and only there."""

from pathlib import Path

import pytest

from lit_merge.report.advice import advice
from lit_merge.report.report import Report
from lit_merge.report.run_folder import RunFolder
from lit_merge.report.scores import TaskScore


@pytest.mark.parametrize(
    ("before", "kept", "after", "helped"), [(0.5, 0.7, 0.7, True), (0.5, 0.504, 0.6, False), (0.5, 0.5, 0.3, False)]
)
def test_by_what_the_guard_saw(before: float, kept: float, after: float, helped: bool, tmp_path: Path) -> None:
    looks = {0: before, 10: kept, 20: after}
    rows = [
        f"{step},{task},1,1,{value + shift},0"
        for step, value in looks.items()
        for task, shift in (("a", 0.1), ("b", -0.1))
    ]
    (tmp_path / "guard.csv").write_text("\n".join(["step,task,entropy,balance,agreement,churn", *rows]) + "\n")
    back = {"step": 10, "at": 20, "why": "?"}
    (tmp_path / "metrics.json").write_text(Report("m", "p", kept=back).to_json())
    said = advice(RunFolder(tmp_path))
    assert (said == "") == helped
    if not helped:
        assert f"agreement with the experts {100 * before:.1f} % before, {100 * kept:.1f} % after" in said
        assert "sweep --select agreement" in said
        assert "configs/cart_teachers.yaml" in said


def test_by_accuracies_without_a_guard(tmp_path: Path) -> None:
    for after, helped in ((0.8, True), (0.701, False)):
        scores = {"static": {"a": TaskScore(0.7, 1.0, 9)}, "adapted": {"a": TaskScore(after, 1.0, 9)}}
        (tmp_path / "metrics.json").write_text(Report("m", "p", scores).to_json())
        assert (advice(RunFolder(tmp_path)) == "") == helped
    (tmp_path / "metrics.json").write_text(Report("m", "p").to_json())
    assert advice(RunFolder(tmp_path)) == ""
