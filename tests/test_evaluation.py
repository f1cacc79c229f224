"""Accuracy and entropy per task, by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lit_merge.evaluation import Evaluator, TaskMetrics, TaskScore, mean_accuracy
from lit_merge.objectives import entropy
from lit_merge.trainer import Trainer


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
    from safetensors.torch import load_file

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
