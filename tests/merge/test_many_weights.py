"""Work grows with the number of weights, and not with its square."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_merge import TaskArithmetic, TaskBank, build_bank, merge_files
from lit_merge.checkpoints.conversion import convert
from lit_merge.merge.compressed_bank import compress_bank

FEW, MANY = 20, 120


def write(folder: Path) -> None:
    count = int(folder.name)
    for i, name in enumerate(("base", "a", "b")):
        states = torch.randn(count, 1, generator=torch.Generator().manual_seed(i))
        save_file({f"layers.{j}.weight": value.clone() for j, value in enumerate(states)}, folder / name)


def experts(folder: Path) -> dict[str, Path]:
    return {task: folder / task for task in ("a", "b")}


def merge(folder: Path) -> None:
    merge_files(experts(folder), folder / "out", folder / "base", method=TaskArithmetic(scaling=0.5))


def build(folder: Path) -> None:
    build_bank(experts(folder), folder / "base", method=TaskArithmetic(scaling=0.5)).save(folder / "bank")


def load(folder: Path) -> None:
    TaskBank.load(folder / "bank").merge()


def one_by_one(folder: Path) -> None:
    bank = TaskBank.load(folder / "bank")
    for name in bank.origin:
        bank.weight(name)


def compress(folder: Path) -> None:
    compress_bank(TaskBank.load(folder / "bank"), folder / "small", dtype="int8")


def to_shards(folder: Path) -> None:
    convert(str(folder / "a"), folder / "shards", max_shard_bytes=100)


def calls(work: Callable[[Path], None], folder: Path) -> int:
    """How many functions were called, and generators asked."""
    count = 0

    def see(*arguments: Any) -> None:
        nonlocal count
        count += arguments[1] in ("call", "c_call")

    sys.setprofile(see)
    try:
        work(folder)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("work", [merge, build, load, one_by_one, compress, to_shards])
def test_work_per_weight(work: Callable[[Path], None], tmp_path: Path) -> None:
    found: list[int] = []
    for count in (FEW, FEW, MANY):  # what is imported, or compiled, counts the first time
        folder = tmp_path / str(len(found)) / str(count)
        folder.mkdir(parents=True)
        write(folder)
        if work in (load, one_by_one, compress):
            build(folder)
        found.append(calls(work, folder))
    assert found[2] < 1.5 * MANY / FEW * found[1], found
