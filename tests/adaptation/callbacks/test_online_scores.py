"""OnlineScores: what was predicted of every image before the merge adapted on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_merge import MergedModel, MergeError, MergeWarning, OnlineScores, ResumePoint, Stage
from lit_merge.adaptation.run import run_fit
from lit_merge.adaptation.trainer import Trainer
from lit_merge.cli.main import main

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]
STAGES = (Stage("layer", 50, 0.05),)


class Recorder(Callback):
    """Images of every batch, and the coefficients before its update."""

    def __init__(self) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []
        self.coefficients: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        self.coefficients.append(pl_module.coefficients().detach().clone())


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("order", ["random", "label"])
def test_accuracy_of_every_image_before_its_update(
    order: Any, batch_size: int, make_model: Make, make_trainer: MakeTrainer, tiny: Any
) -> None:
    data = tiny.data(protocol="online", order=order, batch_size=batch_size)
    model, scores, recorder = make_model(stages=STAGES), OnlineScores(), Recorder()
    make_trainer(max_steps=1000, callbacks=[scores, recorder]).fit(model, datamodule=data)
    assert len(recorder.batches) == -(-26 // batch_size) == data.steps
    # Images are distinguished by their pixels: nothing here depends on the order that the callback assumes.
    tested = {
        task: (source.read(range(len(source))), labels) for task, (source, labels) in data.labelled("test").items()
    }
    hits: dict[str, list[bool]] = {task: [] for task in tiny.tasks}
    for batch, coefficients in zip(recorder.batches, recorder.coefficients, strict=True):
        with torch.no_grad():
            predicted = model.network(model.bank.merge(coefficients, torch.float32), batch)
        for task, logits in predicted.items():
            for image, row in zip(batch[task], logits, strict=True):
                (place,) = (tested[task][0] == image).flatten(1).all(1).nonzero().flatten().tolist()
                hits[task].append(int(row.argmax()) == int(tested[task][1][place]))
    assert {task: score.images for task, score in scores.scores.items()} == {"alpha": 23, "beta": 17, "gamma": 26}
    for task, found in hits.items():
        assert scores.scores[task].accuracy == pytest.approx(sum(found) / len(found))
    assert not torch.equal(recorder.coefficients[-1], recorder.coefficients[0])


def test_a_fit_that_ends_before_the_stream_says_so(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    scores = OnlineScores()
    with pytest.warns(MergeWarning, match="ended before the stream: online accuracies are of 24 of its 66 images"):
        make_trainer(max_steps=2, callbacks=[scores]).fit(make_model(), datamodule=tiny.data(protocol="online"))
    assert {score.images for score in scores.scores.values()} == {8}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_stream_goes_on(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    whole, first, second = OnlineScores(), OnlineScores(), OnlineScores()
    data = {"protocol": "online"}
    model = make_model(stages=STAGES)
    make_trainer(max_steps=100, callbacks=[whole]).fit(model, datamodule=tiny.data(**data))
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    trainer = make_trainer(max_steps=3, callbacks=[first, keep], enable_checkpointing=True)
    with pytest.warns(MergeWarning, match="before the stream"):
        trainer.fit(make_model(stages=STAGES), datamodule=tiny.data(**data))
    resumed, (checkpoint,) = make_model(stages=STAGES), tmp_path.glob("*.ckpt")
    make_trainer(max_steps=100, callbacks=[second]).fit(
        resumed, datamodule=tiny.data(**data), ckpt_path=checkpoint, weights_only=True
    )
    assert second.scores == whole.scores
    assert torch.equal(resumed.coefficients(), model.coefficients())
    for task, classes in whole.predictions.items():
        assert torch.equal(second.predictions[task], classes)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_without_predictions(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=2)
    trainer = make_trainer(max_steps=2, callbacks=[keep], enable_checkpointing=True)
    trainer.fit(make_model(), datamodule=tiny.data(protocol="online"))
    (checkpoint,) = tmp_path.glob("*.ckpt")
    with pytest.raises(MergeError, match="no predictions of the stream so far"):
        make_trainer(max_steps=9, callbacks=[OnlineScores()]).fit(
            make_model(), datamodule=tiny.data(protocol="online"), ckpt_path=checkpoint, weights_only=True
        )


def test_other_data_and_other_modules(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    with pytest.raises(MergeError, match="data that passes once"):
        make_trainer(max_steps=1, callbacks=[OnlineScores()]).fit(make_model(), datamodule=tiny.data())
    with pytest.raises(MergeError, match="works on a MergedModel, not on LightningModule"):
        OnlineScores().on_fit_start(make_trainer(), LightningModule())


def test_a_run_reports_the_stream_beside_the_adapted_merge(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    listed = OnlineScores()
    trainer = make_trainer(max_steps=1000, callbacks=[listed])
    report = run_fit(trainer, make_model(stages=STAGES), tiny.data(protocol="online"), tmp_path / "run")
    assert report.states == ["static", "online", "adapted"]
    assert report.scores["online"] == listed.scores
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert saved["protocol"].startswith("online (one pass over the test images, each batch predicted before")
    for task, score in listed.scores.items():
        assert saved["tasks"][task]["online_accuracy"] == score.accuracy
    assert "online" in (tmp_path / "run" / "table.txt").read_text()


def test_the_command_line_stops_with_the_stream(
    tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    online = ["--data.protocol", "online", "--data.batch_size", "4", "--trainer.enable_progress_bar", "false"]
    # Two stages of 100 steps, and stages of 2: it is the stream that counts.
    for i, extra in enumerate(([], ["--model.stages", "[{granularity: layer, steps: 2}]"])):
        run = tmp_path / str(i)
        arguments = ["fit", "--config", "configs/quickstart.yaml", *tiny.options, *online, *extra, "--run", str(run)]
        assert main([*arguments, "--trainer.log_every_n_steps", "1"]) == 0
        assert len((run / "log" / "metrics.csv").read_text().splitlines()) == 1 + 7
        assert json.loads((run / "metrics.json").read_text())["mean"]["online"] > 0
    assert "online" in capsys.readouterr().out


class Die(Callback):
    """Stands for a kill."""

    def on_train_batch_start(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == 5:
            raise RuntimeError("killed")


@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_that_was_killed_in_mid_stream(
    mixed: bool, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    def start(name: str, *callbacks: Callback) -> None:
        trainer = make_trainer(max_steps=99, callbacks=[ResumePoint(every_steps=2), *callbacks])
        data = tiny.data(protocol="online", mixed=mixed, batch_size=4)
        run_fit(trainer, make_model(stages=STAGES), data, tmp_path / name)

    start("whole")
    with pytest.raises(RuntimeError, match="killed"):
        start("killed", Die())
    start("killed")
    whole, killed = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed"))
    assert whole["mean"]["online"] > 0
    assert killed == whole
