"""Tasks mixed in one stream: nobody says which image belongs to which task, when adapting and when testing."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_merge import ImageFolders, MergedModel, MergeError, OnlineScores, RegMean, Stage, Suite
from lit_merge.adaptation.trainer import Trainer
from lit_merge.cli.main import main
from lit_merge.data import TaskData, check_tasks
from lit_merge.objectives import Entropy

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> str:
    """The adaptation images of all tasks in one folder, under names that do not say whose they are."""
    images = [path for task in tiny.tasks for path in sorted(Path(tiny.adapt_folders[task]).iterdir())]
    (tmp_path / "all").mkdir()
    for i, path in enumerate(images):
        shutil.copy(path, tmp_path / "all" / f"{(7 * i) % len(images):03d}.png")
    return str(tmp_path / "all")


def mixed_folder(tiny: Any, folder: str, **options: Any) -> ImageFolders:
    return ImageFolders({"mixed": folder}, image_size=16, **{"test": tiny.test_folders, "batch_size": 6} | options)


def test_the_stream_holds_the_images_of_all_tasks(tiny: Any, folder: str) -> None:
    files = load_file(tiny.root / "images.safetensors")
    expected = sorted(x.numpy().tobytes() for task in tiny.tasks for x in files[f"{task}/adaptation"])
    for data in (tiny.data(mixed=True), mixed_folder(tiny, folder)):
        ((name, source),) = data.unlabelled().items()
        assert name == "mixed"
        images = source.read(range(len(source)))
        assert sorted(x.numpy().tobytes() for x in (images if images.ndim == 3 else images[:, 0])) == expected
        for batch in data.train_dataloader():
            assert list(batch) == ["mixed"]
            assert len(batch["mixed"]) == data.batch_size
        assert data.protocol.endswith("right among the classes of all tasks")


def test_the_objective_sees_all_classes(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = make_model()
    batch = next(iter(tiny.data(mixed=True).train_dataloader()))
    logits = model(batch)["mixed"]
    assert logits.shape == (4, 3 + 4 + 5)
    features = [model({task: batch["mixed"]})[task] for task in tiny.tasks]
    torch.testing.assert_close(logits, torch.cat(features, dim=1), rtol=1e-4, atol=1e-4)
    trainer = make_trainer(max_steps=1, callbacks=[])
    trainer.fit(model, datamodule=tiny.data(mixed=True))
    assert trainer.callback_metrics["loss"].item() == pytest.approx(Entropy()(logits).item(), rel=1e-4)
    assert not torch.equal(model.coefficients(), make_model().coefficients())


@pytest.mark.parametrize("folders", [False, True])
def test_test_scores_among_the_classes_of_all_tasks(
    folders: bool, make_model: Make, make_trainer: MakeTrainer, tiny: Any, folder: str
) -> None:
    data: TaskData = mixed_folder(tiny, folder) if folders else tiny.data(mixed=True)
    model = make_model()
    check_tasks(data, model.tasks)
    make_trainer().test(model, datamodule=data, verbose=False)
    first = {"alpha": 0, "beta": 3, "gamma": 7}
    assert list(model.scores) == list(tiny.tasks)
    for task, (source, labels) in tiny.data().labelled("test").items():
        with torch.no_grad():
            logits = model({"mixed": source.read(range(len(source)))})["mixed"]
        right = (logits.argmax(1) == labels.long() + first[task]).double().mean().item()
        assert model.scores[task].accuracy == pytest.approx(right)
    apart = make_model()
    make_trainer().test(apart, datamodule=tiny.data(), verbose=False)
    worse = [apart.scores[task].accuracy - model.scores[task].accuracy for task in tiny.tasks]
    assert min(worse) >= 0
    assert max(worse) > 0


@pytest.mark.parametrize("order", ["random", "label"])
def test_a_mixed_stream_that_passes_once(order: Any, make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    data, scores = tiny.data(mixed=True, protocol="online", order=order, batch_size=9), OnlineScores()
    known = data.answers()["mixed"]
    assert len(set(known.tasks[:20])) == (1 if order == "label" else 3)
    model = make_model(stages=(Stage("layer", 9, 1e-9),))
    make_trainer(max_steps=99, callbacks=[scores]).fit(model, datamodule=data)
    assert scores.predictions["mixed"].shape == (66,)
    # At this rate of learning nothing is learnt: online accuracies are those of the static merge.
    make_trainer().test(model, datamodule=data, verbose=False)
    assert {t: s.accuracy for t, s in scores.scores.items()} == {t: s.accuracy for t, s in model.scores.items()}
    assert {task: score.images for task, score in scores.scores.items()} == {"alpha": 23, "beta": 17, "gamma": 26}


def test_only_some_of_the_tasks_of_the_heads(make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    """The heads' file has three tasks: the two that are merged are distinguished among their own classes only."""
    network = ["--model.network.config", tiny.network, "--model.network.heads", tiny.heads]
    experts = [f"--model.experts.{task}={tiny.experts[task]}" for task in ("gamma", "beta")]
    data = ["--data", "Suite", "--data.path", tiny.suite, "--data.mixed", "true", "--data.tasks", "[beta, gamma]"]
    options = [
        "--model.network",
        "OpenClipImageEncoder",
        *network,
        *experts,
        *data,
        "--model.base",
        tiny.base,
        "--model.method",
        "TaskArithmetic",
    ]
    output = tmp_path / "scores.json"
    assert main(["test", *options, "--output", str(output), "--trainer.enable_progress_bar", "false"]) == 0
    report = json.loads(output.read_text())
    assert report["protocol"].endswith("right among the classes of all tasks")
    assert list(report["tasks"]) == ["gamma", "beta"]


def test_unlabelled_images_in_one_folder_suffice(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, folder: str
) -> None:
    data = mixed_folder(tiny, folder, test=None)
    assert data.tasks == ("mixed",)
    check_tasks(data, tiny.tasks)
    model = make_model()
    make_trainer(max_steps=2).fit(model, datamodule=data)
    assert not torch.equal(model.coefficients(), make_model().coefficients())


def test_what_mixed_data_cannot_be_used_for(tiny: Any, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MergeError, match="goes without other tasks"):
        ImageFolders({"mixed": folder, "alpha": folder})
    with pytest.raises(MergeError, match="'gamma' that is not merged"):
        check_tasks(mixed_folder(tiny, folder), ("alpha", "beta"))
    with pytest.raises(MergeError, match="'gamma' without data"):
        check_tasks(Suite(tiny.suite, tasks=["alpha", "beta"]), tiny.tasks)
    start = ["--config", "configs/quickstart.yaml", *tiny.options, "--data.mixed", "true"]
    asking = [
        "--model.objective",
        "ExpertAgreement",
        "--run",
        f"{folder}/run",
        "--trainer.enable_progress_bar",
        "false",
    ]
    assert main(["fit", *start, *asking]) == 2
    assert "ExpertAgreement asks every expert about inputs of its own task" in capsys.readouterr().err
    assert main(["sweep", *start, "--output", f"{folder}/sweep"]) == 2
    assert "data that does not mix the tasks" in capsys.readouterr().err
    assert main(["merge", *start, "--model.method", RegMean.__name__, "--output", f"{folder}/m.safetensors"]) == 2
    assert "RegMean looks at inputs of every task by itself" in capsys.readouterr().err


def test_entropy_chooses_a_scale_on_a_mixed_stream(tiny: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    start = ["--config", "configs/cart_entropy.yaml", *tiny.options, "--data.mixed", "true"]
    assert main(["merge", *start, "--output", str(tmp_path / "merged.safetensors")]) == 0
    assert not [w for w in recwarn if "with 1 tasks" in str(w.message)]


def test_predictions_are_numbered_through_all_tasks(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = make_model()
    predictions = make_trainer().predict(model, datamodule=tiny.data(mixed=True))
    source, _ = tiny.data().labelled("test")["alpha"]
    with torch.no_grad():
        expected = model({"mixed": source.read(range(23))})["mixed"].argmax(1)
    found = torch.cat([batch["classes"][:, 0] for batch in predictions if batch["task"] == "alpha"])
    assert torch.equal(found, expected)
    assert found.max() >= 3


def test_predictions_are_called_by_task_and_class(tiny: Any, folder: str, tmp_path: Path) -> None:
    """With test folders, whose names are the classes; without them classes have numbers."""
    network = ["--model.network.config", tiny.network, "--model.network.heads", tiny.heads]
    options = ["--model.experts", f"{tiny.root}/experts", "--model.base", tiny.base, *network]
    adapt = ["--data", "ImageFolders", "--data.adapt", json.dumps({"mixed": folder})]
    start = [
        "predict",
        "--config",
        "configs/quickstart.yaml",
        *options,
        *adapt,
        "--trainer.enable_progress_bar",
        "false",
    ]
    for i, (extra, wanted) in enumerate(
        ((["--data.test", json.dumps(tiny.test_folders)], "(alpha|beta|gamma)/class[0-4]"), ([], "[0-9]+"))
    ):
        output = tmp_path / f"{i}.csv"
        assert main([*start, *extra, "--output", str(output)]) == 0
        rows = list(csv.DictReader(output.read_text().splitlines()))
        assert {row["task"] for row in rows} == (set(tiny.tasks) if extra else {"mixed"})
        classes = {row["class_1"] for row in rows}
        assert all(re.fullmatch(wanted, name) for name in classes), classes
