"""Texts with the experts' own classifiers: two real processes reach what one does, and go on after a kill."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_merge import TaskBank
from tests.forked_commands import as_torchrun

STEPS = 5
FIT = ("fit", "--config", "config.yaml", "--run", "run")


def config(texts: Any, processes: int, callbacks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "trainer": {
            "accelerator": "cpu",
            "devices": processes,
            "strategy": "ddp" if processes > 1 else "auto",
            "enable_progress_bar": False,
            "callbacks": [*callbacks, {"class_path": "CollapseGuard", "init_args": {"every_n_steps": 0}}],
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


@pytest.fixture(scope="module")
def runs(texts: Any, forks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of fits: of one process, of two, and of two that were killed in mid-fit and run again."""
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    resume_point = {"class_path": "ResumePoint", "init_args": {"every_steps": 2}}
    kill = {"class_path": "tests.watched.KillOnce", "init_args": {"step": 3}}
    kinds: dict[str, tuple[int, list[Any]]] = {"one": (1, []), "two": (2, []), "killed": (2, [resume_point, kill])}
    folders = {name: tmp_path_factory.mktemp(name) for name in kinds}
    for name, (processes, callbacks) in kinds.items():
        (folders[name] / "config.yaml").write_text(yaml.safe_dump(config(texts, processes, callbacks)))
    assert forks.run(*FIT, folder=folders["one"]) == [0], forks.told.read_text()
    assert forks.run(*FIT, folder=folders["two"], environments=as_torchrun(2)) == [0, 0], forks.told.read_text()
    codes = forks.run(*FIT, folder=folders["killed"], environments=as_torchrun(2))
    assert codes[0] == -signal.SIGKILL
    assert not (folders["killed"] / "run").exists()
    codes = forks.run(*FIT, folder=folders["killed"], environments=as_torchrun(2))
    assert codes == [0, 0], forks.told.read_text()
    assert f"going on at step 2 of {STEPS}" in forks.told.read_text()
    return folders


def test_two_processes_give_the_coefficients_of_one(runs: dict[str, Path], texts: Any) -> None:
    one, two = (TaskBank.load(runs[name] / "run" / "bank") for name in ("one", "two"))
    assert one.coefficients.unique().numel() > 10
    torch.testing.assert_close(two.coefficients, one.coefficients, rtol=1e-5, atol=1e-5)
    first, second = (json.loads((runs[name] / "run" / "metrics.json").read_text())["tasks"] for name in ("one", "two"))
    for task in texts.tasks:
        assert second[task]["images"] == first[task]["images"] == 13
        assert second[task]["static_accuracy"] == first[task]["static_accuracy"]
        assert second[task]["expert_accuracy"] == first[task]["expert_accuracy"]
        assert second[task]["adapted_entropy"] == pytest.approx(first[task]["adapted_entropy"], rel=1e-3)


def test_killed_processes_go_on_to_the_same_bits(runs: dict[str, Path]) -> None:
    for file in ("coefficients.csv", "metrics.json", "bank/bank.safetensors"):
        whole, resumed = ((runs[name] / "run" / file).read_bytes() for name in ("two", "killed"))
        assert resumed == whole
    assert not list(runs["killed"].glob(".run*"))
