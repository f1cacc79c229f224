"""MergeProgress: steps of the fit, names of the evaluations, on standard error."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lit_merge import MergedModel
from lit_merge.adaptation.callbacks import CollapseGuard, MergeProgress
from lit_merge.adaptation.scoring import Evaluator
from lit_merge.adaptation.trainer import Trainer
from lit_merge.console import Manner, use_manner


@pytest.fixture
def passes(
    make_model: Callable[..., MergedModel], make_trainer: Callable[..., Trainer], tiny: Any
) -> Callable[[], None]:
    """passes(): a fit of 13 steps with a guard, and an evaluation."""

    def run() -> None:
        model = make_model()
        callbacks = [CollapseGuard(every_n_steps=10, restore=False), MergeProgress()]
        trainer = make_trainer(max_steps=13, enable_progress_bar=True, callbacks=callbacks)
        trainer.fit(model, datamodule=tiny.data())
        weights = {name: value.detach() for name, value in model.merged_weights().items()}
        evaluator = Evaluator(model.network, model.tasks, lambda task: weights, "static merge")
        trainer.test(evaluator, datamodule=tiny.data(), verbose=False)

    return run


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    use_manner(Manner())


def test_lines_where_there_is_no_terminal(passes: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    passes()
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.partition(":")[0] for line in steps] == [f"step {step} of 13" for step in range(1, 14)]
    known = r"objective \d\.\d{3}, agreement \d+\.\d %, λ \S+ \(\S+ to \S+\), rank \d+, \S+ inputs/s, \d:\d\d left"
    assert re.fullmatch(f"step 13 of 13: {known}", steps[-1])
    assert re.fullmatch(r"static merge: \d+\.\d % right, mean of 3 tasks \(\d+ s\)", lines[-1])


def test_a_table_on_a_terminal(
    passes: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "100", "LINES": "30", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    passes()
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    for text in (
        *tiny.tasks,
        "objective",
        "entropy",
        "λ lowest",
        "guard: ",
        "adapting",
        "13/13",
        "static merge",
        "8/8",
    ):
        assert text in said


def test_quiet(passes: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    use_manner(Manner(quiet=True))
    passes()
    assert capsys.readouterr() == ("", "")


def test_events(passes: Callable[[], None], capsys: pytest.CaptureFixture[str], tiny: Any) -> None:
    use_manner(Manner(json=True))
    passes()
    said = capsys.readouterr()
    assert said.err == ""
    *steps, scores = map(json.loads, said.out.splitlines())
    assert [(one["event"], one["step"], one["of"]) for one in steps] == [("step", s, 13) for s in (1, 10, 13)]
    for one in steps:
        objectives = [task["objective"] for task in one["tasks"].values()]
        assert one["objective"] == pytest.approx(sum(objectives) / len(objectives), rel=1e-5)
        assert one["coefficients"]["lowest"] <= one["coefficients"]["mean"] <= one["coefficients"]["highest"]
        assert 0 <= one["tasks"]["alpha"]["agreement"] <= 1
    assert (scores["event"], scores["of"], list(scores["tasks"])) == ("scores", "static merge", list(tiny.tasks))
