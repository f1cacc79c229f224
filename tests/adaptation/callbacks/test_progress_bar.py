"""MergeProgress: steps of the fit, names of the evaluations, on standard error."""

from collections.abc import Callable
from typing import Any

import pytest

from lit_merge import MergedModel
from lit_merge.adaptation.callbacks import MergeProgress
from lit_merge.adaptation.scoring import Evaluator
from lit_merge.adaptation.trainer import Trainer


def test_bars(
    make_model: Callable[..., MergedModel],
    make_trainer: Callable[..., Trainer],
    tiny: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    model = make_model()
    trainer = make_trainer(max_steps=13, enable_progress_bar=True, callbacks=[MergeProgress()])
    trainer.fit(model, datamodule=tiny.data())
    weights = {name: value.detach() for name, value in model.merged_weights().items()}
    evaluator = Evaluator(model.network, model.tasks, lambda task: weights, "static merge")
    trainer.test(evaluator, datamodule=tiny.data(), verbose=False)
    told = capsys.readouterr()
    assert told.out == ""
    for text in ("adapting", "13/13", "loss", "coefficient", "static merge", "8/8"):
        assert text in told.err
