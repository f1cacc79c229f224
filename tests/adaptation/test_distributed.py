"""Two real processes reach what one process reaches with the same global batch."""

import csv
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lit_merge import MergeError, TaskBank
from lit_merge.adaptation.samples import spread
from tests.forked_commands import as_torchrun

STEPS = 7


def config(tiny: Any, processes: int, callbacks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "trainer": {
            "accelerator": "cpu",
            "devices": processes,
            "strategy": "ddp" if processes > 1 else "auto",
            "enable_progress_bar": False,
            # Three batches for two processes: one of them has fewer.
            "limit_val_batches": 1.0,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "callbacks": [
                *callbacks,
                # The guard of every process looks at the same inputs, which would be counted here.
                {"class_path": "CollapseGuard", "init_args": {"every_n_steps": 0}},
                {"class_path": "CoefficientLog", "init_args": {"figures": False}},
            ],
        },
        "model": {
            "experts": tiny.experts,
            "base": tiny.base,
            "network": {
                "class_path": "OpenClipImageEncoder",
                "init_args": {"config": tiny.network, "heads": tiny.heads},
            },
            "method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5, "scaling": 1.0}},
            "ranks": {"rank_ratio": 0.3, "lr": 0.02},
            "stages": [
                {"granularity": "tied", "steps": 3, "lr": 0.05},
                {
                    "granularity": "direction",
                    "steps": STEPS - 3,
                    "lr": 0.01,
                    "objective": {"class_path": "ExpertAgreement"},
                },
            ],
            "correction": {"rank": 2, "lr": 0.01},
        },
        "data": {
            "class_path": "tests.watched.WatchedSuite",
            "init_args": {"path": tiny.suite, "batch_size": 4 // processes, "eval_batch_size": 50},
        },
    }


FIT = ("fit", "--config", "config.yaml", "--run", "run")


def reads(folder: Path, split: str, process: int) -> list[tuple[str, tuple[int, ...]]]:
    lines = (folder / f"{split}-{process}").read_text().splitlines()
    return [(task, tuple(indices)) for task, indices in map(json.loads, lines)]


@pytest.fixture(scope="module")
def runs(tiny: Any, forks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of fits: of one process, of two, and of two that were killed in mid-fit and run again."""
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    resume_point = {"class_path": "ResumePoint", "init_args": {"every_steps": 2}}
    kill = {"class_path": "tests.watched.KillOnce", "init_args": {"step": 5}}
    kinds: dict[str, tuple[int, list[Any]]] = {"one": (1, []), "two": (2, []), "killed": (2, [resume_point, kill])}
    folders = {name: tmp_path_factory.mktemp(name) for name in kinds}
    for name, (processes, callbacks) in kinds.items():
        (folders[name] / "config.yaml").write_text(yaml.safe_dump(config(tiny, processes, callbacks)))
    assert forks.run(*FIT, folder=folders["one"]) == [0], forks.said.read_text()
    # Lightning starts the second process, by the same command.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    codes = forks.run(*FIT, folder=folders["two"], environments=[{"PYTHONPATH": path}])
    assert codes == [0], forks.said.read_text()
    codes = forks.run(*FIT, folder=folders["killed"], environments=as_torchrun(2))
    assert codes == [-signal.SIGKILL, 2]
    lines = [line for line in forks.said.read_text().splitlines() if not line.startswith("computing with")]
    last = "process 1 of 2 died: run was not written; the same command goes on (.run.unfinished)"
    assert lines[-1] == f"lit_merge: error: {last}"
    assert "Traceback" not in forks.said.read_text()
    assert not (folders["killed"] / "run").exists()
    codes = forks.run(*FIT, folder=folders["killed"], environments=as_torchrun(2))
    assert codes == [0, 0], forks.said.read_text()
    assert f"going on at step 4 of {STEPS}" in forks.said.read_text()
    return folders


def test_two_processes_give_the_coefficients_of_one(runs: dict[str, Path], tiny: Any) -> None:
    one, two = (TaskBank.load(runs[name] / "run" / "bank") for name in ("one", "two"))
    assert one.coefficients.unique().numel() > 10
    torch.testing.assert_close(two.coefficients, one.coefficients, rtol=1e-5, atol=1e-6)
    assert any(value.any() for key, value in one.correction.items() if key.startswith("A/"))
    for key, value in one.learnt.items():
        if key.endswith("in_proj_bias"):
            continue  # that of keys has no gradient but rounding's, of which Adam makes whole steps
        torch.testing.assert_close(two.learnt[key], value, rtol=1e-3, atol=1e-5)
    # Learnt ranks are those that are used.
    assert two.ranks == one.ranks
    # Batches as large as a task: each process sees tasks that the other does not.
    first, second = (json.loads((runs[name] / "run" / "metrics.json").read_text())["tasks"] for name in ("one", "two"))
    for task in tiny.tasks:
        assert second[task]["images"] == first[task]["images"]
        assert second[task]["static_accuracy"] == first[task]["static_accuracy"]
        assert second[task]["expert_accuracy"] == first[task]["expert_accuracy"]
        assert second[task]["adapted_entropy"] == pytest.approx(first[task]["adapted_entropy"], rel=1e-4)


def test_validation_within_the_fit_is_of_all_images(runs: dict[str, Path]) -> None:
    logs = []
    for name in ("one", "two"):
        rows = csv.DictReader((runs[name] / "run" / "log" / "metrics.csv").read_text().splitlines())
        logs.append([float(row["validation/accuracy"]) for row in rows if row["validation/accuracy"]])
    assert len(logs[0]) == 2
    assert logs[1] == pytest.approx(logs[0])


def test_each_process_reads_its_part_only(runs: dict[str, Path], tiny: Any) -> None:
    """Images are counted, not looked up: a step's batch of one process is both processes' together."""
    for split in ("adaptation", "test", "validation"):
        whole = reads(runs["one"], split, 0)
        parts = [reads(runs["two"], split, process) for process in (0, 1)]
        assert all(parts)
        if split == "adaptation":
            # Before the first step experts are asked of every task, by each process about what it will draw.
            asked = [{task: set(indices) for task, indices in one[: len(tiny.tasks)]} for one in (whole, *parts)]
            whole, *parts = (one[len(tiny.tasks) :] for one in (whole, *parts))
            for known, one in zip(asked, (whole, *parts), strict=True):
                assert all(known[task].issuperset(indices) for task, indices in one)
            steps = zip(whole, *parts, strict=True)
            assert len(whole) >= STEPS
            for (task, indices), (first_task, first), (second_task, second) in steps:
                assert task == first_task == second_task
                assert indices == first + second
                assert len(first) == len(second) == 2
        else:
            # Images of a report's samples, of all tasks, are read again one by one, by the process that writes.
            again = [[read for read in one if len(read[1]) == 1] for one in (whole, *parts)]
            sizes = {task: len(indices) for task, indices in whole if len(indices) > 1}
            samples = [(task, (i,)) for task, n in sizes.items() for i in spread(n)] if split == "test" else []
            assert [sorted(one) for one in again] == [sorted(samples), sorted(samples), []]
            whole, *parts = ([read for read in one if len(read[1]) > 1] for one in (whole, *parts))
            assert sorted(whole) == sorted([*parts[0], *parts[1]])
            assert not {task for task, _ in parts[0]} & {task for task, _ in parts[1]}


def test_killed_processes_go_on_to_the_same_bits(runs: dict[str, Path]) -> None:
    for file in ("coefficients.csv", "metrics.json", "bank/bank.safetensors"):
        whole, resumed = ((runs[name] / "run" / file).read_bytes() for name in ("two", "killed"))
        assert resumed == whole
    # What was evaluated before the fit is not evaluated again.
    assert len(reads(runs["killed"], "test", 1)) == len(reads(runs["two"], "test", 1))
    assert not list(runs["killed"].glob(".run*"))


@pytest.mark.parametrize("processes", [2, 4, 7, 13])
def test_no_process_is_without_a_batch_to_test_on(processes: int, tiny: Any) -> None:
    """It would not take part in what the others exchange, and they would wait for ever."""
    seen = []
    for rank in range(processes):
        data = tiny.data(eval_batch_size=500)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=processes)
        batches = [(batch["task"], batch["indices"].tolist()) for batch in data.test_dataloader()]
        assert batches
        seen += [(task, index) for task, indices in batches for index in indices]
    assert sorted(seen) == sorted(
        (task, i) for task, n in (("alpha", 23), ("beta", 17), ("gamma", 26)) for i in range(n)
    )


def test_more_processes_than_images(tiny: Any) -> None:
    data = tiny.data()
    data.trainer = SimpleNamespace(global_rank=0, world_size=70)
    with pytest.raises(MergeError, match=r"66 inputs for 70 processes: take fewer --trainer\.devices"):
        data.test_dataloader()
