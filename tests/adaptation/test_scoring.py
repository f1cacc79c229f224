"""Accuracy and entropy per task, by hand."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_merge import ImageFolders, MergeError
from lit_merge.adaptation.scoring import Evaluator, TaskMetrics
from lit_merge.adaptation.trainer import Trainer
from lit_merge.objectives import entropy
from lit_merge.report.scores import TaskScore, mean_accuracy


def test_unequal_batches_count_by_their_size() -> None:
    metrics = TaskMetrics(["a", "b"])
    logits, labels = torch.randn(11, 3), torch.randint(3, (11,))
    for part in (slice(0, 4), slice(4, 8), slice(8, 11)):
        metrics.update("a", logits[part], labels[part])
    scores = metrics.scores()
    assert set(scores) == {"a"}
    assert scores["a"].accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert scores["a"].entropy == pytest.approx(entropy(logits).mean().item(), rel=1e-5)
    assert scores["a"].images == 11
    assert metrics.scores() == {}


def test_mean_is_over_tasks_not_images() -> None:
    assert mean_accuracy({"a": TaskScore(1.0, 0.0, 1000), "b": TaskScore(0.0, 0.0, 1)}) == 0.5


def test_experts_are_read_one_by_one_and_know_their_tasks(make_trainer: Callable[..., Trainer], tiny: Any) -> None:
    read = []

    def weights(task: str) -> dict[str, torch.Tensor]:
        read.append(task)
        return load_file(tiny.experts[task])

    evaluator = Evaluator(tiny.encoder(), tiny.tasks, weights)
    make_trainer().test(evaluator, datamodule=tiny.data(), verbose=False)
    assert sorted(read) == sorted(tiny.tasks)
    network, (images, labels) = tiny.encoder(), tiny.data().labelled("test")["beta"]
    with torch.no_grad():
        logits = network(load_file(tiny.experts["beta"]), {"beta": images.read(range(17))})["beta"]
    found = evaluator.scores["beta"]
    assert found.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert found.entropy == pytest.approx(entropy(logits).mean().item(), rel=1e-4)
    assert {task: score.images for task, score in evaluator.scores.items()} == {"alpha": 23, "beta": 17, "gamma": 26}


def test_accuracy_and_entropy_by_hand() -> None:
    metrics = TaskMetrics(["a"])
    # Probabilities 3/4 and 1/4; the second image is missed.
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 3.0], [1.0, 3.0]]).log()
    metrics.update("a", logits[:3], torch.tensor([0, 1, 1]))
    metrics.update("a", logits[3:], torch.tensor([1]))
    found = metrics.scores()["a"]
    assert (found.accuracy, found.images) == (0.75, 4)
    assert found.entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), rel=1e-6)


def test_accuracy_is_exact_for_many_images() -> None:
    metrics = TaskMetrics(["a"])
    labels = torch.arange(30_000) % 3
    for part in labels.split(70):
        metrics.update("a", torch.eye(3)[torch.zeros_like(part)], part)
    assert metrics.scores()["a"].accuracy == 1 / 3


def test_class_folders_must_be_as_many_as_the_heads_rows(
    make_model: Callable[..., Any], make_trainer: Callable[..., Trainer], tiny: Any, tmp_path: Path
) -> None:
    """Sorted folders are the rows of the head: one that is missing would shift the classes after it."""
    folder = tmp_path / "beta"
    shutil.copytree(tiny.test_folders["beta"], folder)
    shutil.rmtree(folder / "class1")
    data = ImageFolders(tiny.adapt_folders, tiny.test_folders | {"beta": str(folder)}, image_size=16)
    weights = {name: value.detach() for name, value in make_model().merged_weights().items()}
    for module in (make_model(), Evaluator(tiny.encoder(), tiny.tasks, lambda task: weights)):
        with pytest.raises(MergeError, match="3 class folders, the head of task beta 4 classes") as error:
            make_trainer().test(module, datamodule=data, verbose=False)
        assert error.value.task == "beta"
    (folder / "class1").mkdir()
    model = make_model()
    make_trainer().test(model, datamodule=data, verbose=False)
    assert model.scores["beta"].images < 17
