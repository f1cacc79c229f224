"""Texts with the experts' own classifiers: two real processes reach what one does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_merge import TaskBank
from tests.forked_commands import as_torchrun

STEPS = 5
FIT = ("fit", "--config", "config.yaml", "--run", "run")


def config(texts: Any, processes: int) -> dict[str, Any]:
    return {
        "trainer": {
            "accelerator": "cpu",
            "devices": processes,
            "strategy": "ddp" if processes > 1 else "auto",
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "CollapseGuard", "init_args": {"every_n_steps": 0}}],
        },
        "model": {
            "experts": texts.experts("bert"),
            "base": texts.folder("bert"),
            "network": {"class_path": "HuggingFaceTextEncoder", "init_args": {"config": texts.folder("bert")}},
            "method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5, "scaling": 1.0}},
            "stages": [{"granularity": "layer", "steps": STEPS, "lr": 0.05}],
        },
        "data": {
            "class_path": "TextFiles",
            "init_args": {
                "adapt": texts.tables("adapt"),
                "test": texts.tables("test"),
                "tokenizer": texts.folder("bert"),
                "batch_size": 4 // processes,
                "eval_batch_size": 6,
            },
        },
    }


def test_two_processes_give_the_coefficients_of_one(texts: Any, forks: Any, tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    runs = {}
    for name, environments in {"one": [{}], "two": as_torchrun(2)}.items():
        runs[name] = tmp_path / name
        runs[name].mkdir()
        (runs[name] / "config.yaml").write_text(yaml.safe_dump(config(texts, len(environments))))
        codes = forks.run(*FIT, folder=runs[name], environments=environments)
        assert codes == [0] * len(environments), forks.said.read_text()
    one, two = (TaskBank.load(runs[name] / "run" / "bank") for name in ("one", "two"))
    assert one.coefficients.unique().numel() > 10
    torch.testing.assert_close(two.coefficients, one.coefficients, rtol=1e-5, atol=1e-5)
    first, second = (json.loads((runs[name] / "run" / "metrics.json").read_text())["tasks"] for name in ("one", "two"))
    for task in texts.tasks:
        assert second[task]["images"] == first[task]["images"] == 13
        assert second[task]["static_accuracy"] == first[task]["static_accuracy"]
        assert second[task]["expert_accuracy"] == first[task]["expert_accuracy"]
        assert second[task]["adapted_entropy"] == pytest.approx(first[task]["adapted_entropy"], rel=1e-3)
