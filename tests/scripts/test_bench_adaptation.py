"""The benchmarks of a step run, print what they promise, and say in a line what they lack."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=900, cwd=SCRIPTS).stdout


def test_a_row_for_each_worker() -> None:
    told = run("bench_adaptation.py", "--layers", "1", "--tasks", "2", "--images", "2", "--steps", "1")
    rows = [line.split("|")[1:-1] for line in told.splitlines() if line.startswith("| 2 ")]
    assert [row[1].strip() for row in rows] == ["plain", "dense", "cart"]
    assert float(rows[0][5]) == 1
    assert all(float(cell) > 0 for row in rows for cell in row[2:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line() -> None:
    assert run("bench_gpu.py") == "bench_gpu: no GPU that torch can use here, so there is nothing to measure\n"
