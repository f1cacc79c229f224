"""Threads: as many as the machine allows, set before torch is loaded, unless the user has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_merge import MergeError
from lit_merge.cli.main import main
from lit_merge.cli.threads import allowed_cores, is_loaded, settle_number, settle_waiting

PROGRAM = """
import os, sys
from lit_merge.cli.threads import settle_number, settle_waiting, settled_threads
os.getloadavg = lambda: ({load}, 0, 0)
print(settle_waiting(["merge", *{arguments}]))
import torch
settle_number()
print(torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY"), settled_threads())
"""


def settled(load: float, *arguments: str, **environment: str) -> list[str]:
    program = PROGRAM.format(load=load, arguments=list(arguments))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=kept | environment
    )
    return done.stdout.splitlines()


def test_a_loaded_machine_is_waited_on_passively() -> None:
    cores = len(os.sched_getaffinity(0))
    loaded = f"{cores} PASSIVE {cores} threads, which wait passively: other programs use these cores"
    assert settled(100.0) == ["['merge']", loaded if cores > 1 else f"{cores} None {cores} threads"]
    # What the user has set stays.
    assert settled(100.0, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE") == ["['merge']", "1 ACTIVE "]


def test_threads_that_are_asked_for() -> None:
    assert settled(0.0, "--threads", "3", "--output", "x") == ["['merge', '--output', 'x']", "3 None "]


def test_in_a_process_that_has_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    try:
        for arguments in (["--threads=2", "zoo"], ["zoo"]):
            assert settle_waiting(arguments) == ["zoo"]
            settle_number()
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
def test_no_number_of_threads(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "--threads", value]) == 2
    said = capsys.readouterr().err
    assert said == f"lit_merge: error: --threads {value}: expected the number of threads, from 1 to 1024\n".replace(
        "  ", " "
    )
    with pytest.raises(MergeError, match="--threads: expected"):
        settle_waiting(["zoo", "--threads"])


def test_quota_of_a_container(tmp_path: Path) -> None:
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    assert own
    cores = len(os.sched_getaffinity(0))
    assert allowed_cores(tmp_path) == cores
    _, controllers, path = own[-1]
    top = tmp_path / controllers
    place = top / path.strip("/")
    place.mkdir(parents=True, exist_ok=True)
    for quota, wanted in (
        ("max 100000", cores),
        ("100000 100000", 1),
        ("50000 100000", 1),
        (f"{cores}00000 100000", cores),
    ):
        (place / "cpu.max").write_text(quota)
        assert allowed_cores(tmp_path) == wanted
    # So does the limit of a group above.
    (top / "cpu.max").write_text("100000 100000")
    assert allowed_cores(tmp_path) == 1


def test_when_a_machine_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for load, count, wanted in ((0.2, 8, False), (2.0, 8, True), (2.0, 4, False), (6.0, 4, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0, 0))
        assert is_loaded(count) is wanted
