"""Two real processes reach what one process reaches with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_merge import TaskBank


def fit(config: dict[str, Any], folder: Path, processes: int) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    options = ["--trainer.devices", str(processes), "--trainer.strategy", "ddp" if processes > 1 else "auto"]
    subprocess.run(
        [sys.executable, "-m", "lit_merge", "fit", "--config", "config.yaml", "--run", "run", *options],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=200,
    )
    return folder / "run"


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_give_the_coefficients_of_one(tiny: Any, tmp_path: Path) -> None:
    runs = []
    for processes in (1, 2):
        config = {
            "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
            "model": {
                "experts": tiny.experts,
                "base": tiny.base,
                "network": {
                    "class_path": "OpenClipImageEncoder",
                    "init_args": {"config": tiny.network, "heads": tiny.heads},
                },
                "method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5, "scaling": 1.0}},
                "stages": [
                    {"granularity": "tied", "steps": 3, "lr": 0.05},
                    {"granularity": "layer", "steps": 3, "lr": 0.01},
                ],
            },
            "data": {
                "class_path": "Suite",
                "init_args": {"path": tiny.suite, "batch_size": 4 // processes, "eval_batch_size": 50},
            },
        }
        runs.append(fit(config, tmp_path / str(processes), processes))
    one, two = (TaskBank.load(run / "bank").coefficients for run in runs)
    assert one.unique().numel() > 10
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    # Batches as large as a task: each process sees tasks that the other does not.
    first, second = (json.loads((run / "metrics.json").read_text())["tasks"] for run in runs)
    for task in tiny.tasks:
        assert second[task]["images"] == first[task]["images"]
        assert second[task]["static_accuracy"] == first[task]["static_accuracy"]
        assert second[task]["expert_accuracy"] == first[task]["expert_accuracy"]
