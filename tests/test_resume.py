"""A fit that is killed goes on by the same command, to the same bits."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lit_merge import CART, ImageFolders, MergedModel, MergeError, RankSchedule, ResumePoint, Stage, TaskBank
from lit_merge.objectives import Entropy, Objective
from lit_merge.rank_masks import AdaRank
from lit_merge.runs import run_fit
from lit_merge.trainer import Trainer
from lit_merge.unfinished import Unfinished

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]
# Two passes and a half over the largest task.
STAGES = (Stage("tied", 7, 0.05), Stage("layer", 16, 0.01))


class Die(Exception):
    """Stands for a kill in tests within one process: nothing of the fit may run after it."""


class DieAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            raise Die


class Drawing(Objective):
    """Draws, as dropout does. (Not from Python's generator: the type checks of the tests draw from that one.)"""

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(logits.shape[0]) > 0.3
        factor = 1 + 0.1 * float(np.random.rand())  # noqa: NPY002
        return Entropy()(logits * kept[:, None] * factor)


def killed_and_resumed(
    stops: tuple[int, ...], make: Callable[[], MergedModel], trainer: Callable[..., Trainer], data: Any, run: Path
) -> MergedModel:
    for stop in stops:
        with pytest.raises(Die):
            run_fit(trainer(callbacks=[ResumePoint(every_steps=2), DieAt(stop)]), make(), data(), run)
        assert not run.exists()
    model = make()
    run_fit(trainer(callbacks=[ResumePoint(every_steps=2)]), model, data(), run)
    return model


@pytest.mark.parametrize("stops", [(3,), (9, 20), (10,), (22,)])
def test_random_objectives_end_at_the_same_bits(
    stops: tuple[int, ...], make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    """Whatever is drawn before the fit by the second process, in mid-pass and at its end (9 steps)."""
    models = []
    for name, places in (("whole", ()), ("killed", stops)):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        data = lambda: ImageFolders(tiny.adapt_folders, tiny.test_folders, image_size=16, batch_size=4)  # noqa: E731
        trainer = lambda **options: make_trainer(max_steps=23, **options)  # noqa: E731
        make = lambda: make_model(stages=STAGES, objective=Drawing())  # noqa: E731
        models.append(killed_and_resumed(places, make, trainer, data, tmp_path / name))
    assert torch.equal(models[0].coefficients(), models[1].coefficients())
    for file in ("coefficients.csv", "metrics.json", "log/metrics.csv"):
        whole, killed = ((tmp_path / name / file).read_text() for name in ("whole", "killed"))
        assert killed == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]
