"""The benchmarks of a step run, print what they promise, and say in a line what they lack."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Run = Callable[..., str]
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(script, options): what it prints."""

    def start(script: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *options])
        monkeypatch.syspath_prepend(SCRIPTS)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        assert end.value.code == 0
        return capsys.readouterr().out

    return start


def test_a_row_for_each_worker(run: Run, forks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `dense` are as those of `cart`, from another bank. Processes are forks, which start at once."""
    monkeypatch.setattr(subprocess, "Popen", forks.popen)
    size = ("--layers", "1", "--tasks", "3", "--images", "2", "--steps", "1")
    said = run("bench_adaptation.py", *size, "--only", "plain", "cart")
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("| 3 ")]
    assert [row[1].strip() for row in rows] == ["plain", "cart"]
    assert float(rows[0][5]) == 1
    assert all(float(cell) > 0 for row in rows for cell in row[2:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(run: Run) -> None:
    assert run("bench_gpu.py") == "bench_gpu: no GPU that torch can use here, so there is nothing to measure\n"
