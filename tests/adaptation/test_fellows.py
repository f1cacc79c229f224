"""Processes of a fit that die: the others end, and one of them says so in one line."""

import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_merge import MergeError
from lit_merge.adaptation import fellows
from lit_merge.adaptation.fellows import FIRST, ending_together
from lit_merge.errors import DiedError
from lit_merge.merge.processes import LOST


def trainer(rank: int, count: int, *started: Any) -> Any:
    launcher = SimpleNamespace(procs=list(started))
    strategy = SimpleNamespace(launcher=launcher)
    return SimpleNamespace(global_rank=rank, local_rank=rank, world_size=count, strategy=strategy, callbacks=[])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process that another one has started and that runs until it is ended."""
    monkeypatch.setattr(fellows, "GRACE", 0.3)
    monkeypatch.delenv(FIRST, raising=False)
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_the_first_process_names_another_that_was_killed(started: Any) -> None:
    started.kill()
    with (
        pytest.raises(DiedError, match=r"^process 2 of 2 was killed by SIGKILL: run was not written$"),
        ending_together(trainer(0, 2, started), lambda: ": run was not written"),
    ):
        raise RuntimeError("Connection closed by peer")


def test_a_bug_is_shown_and_ends_the_others(started: Any) -> None:
    with pytest.raises(RuntimeError, match=r"of my own"), ending_together(trainer(0, 2, started)):
        raise RuntimeError("a bug of my own")
    assert started.wait() == -signal.SIGKILL
    assert FIRST not in os.environ


def test_one_that_has_said_why_is_not_named(started: Any) -> None:
    with subprocess.Popen(["sh", "-c", "exit 2"]) as said:
        said.wait()
        with pytest.raises(SystemExit) as ended, ending_together(trainer(0, 3, started, said)):
            raise RuntimeError("Connection closed by peer")
    assert ended.value.code == 2
    assert started.wait() == -signal.SIGKILL


@pytest.mark.parametrize("rank", [1, 2])
def test_the_first_process_has_died(rank: int, started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the parent of the others, of which the second one says so."""
    monkeypatch.setenv(FIRST, str(started.pid))
    ends = pytest.raises(MergeError, match=r"^process 1 of 3 died$") if rank == 1 else pytest.raises(SystemExit)
    with ends as ended, ending_together(trainer(rank, 3)):
        raise RuntimeError("Connection closed by peer")
    assert rank == 1 or ended.value.code == LOST  # type: ignore[attr-defined]


def busy(mark: str) -> None:
    """A first process that computes, and exchanges nothing, while its second one is killed."""
    fellows.GRACE = 0.3
    with subprocess.Popen(["sleep", "60"]) as second, ending_together(trainer(0, 2, second)):
        second.kill()
        time.sleep(60)
        Path(mark).touch()


def test_a_process_that_is_busy_ends_too(forks: Any, tmp_path: Path) -> None:
    forks.said.write_text("")
    process = forks.start(busy, str(tmp_path / "mark"))
    process.join()
    assert process.exitcode == 2
    assert forks.said.read_text() == "lit_merge: error: process 2 of 2 was killed by SIGKILL\n"
    assert not (tmp_path / "mark").exists()
