"""Every campaign finds the fault of a toy that has it, and nothing in one that has none."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_merge import MergeError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
if not sys.platform.startswith("linux"):
    pytest.skip("system calls are held by Linux", allow_module_level=True)

from campaigns import forks, numbers, options, together
from campaigns.faults import FullDisk, ReadErrors
from campaigns.file_events import can_hold
from campaigns.kills import Disturbed, Kills
from campaigns.mutations import Mutations
from campaigns.mutators import mutate_json
from campaigns.numbers import Numbers
from campaigns.options import Options
from campaigns.power import PowerCuts
from campaigns.processes import Processes
from campaigns.readers import Kind
from campaigns.settings import Settings
from campaigns.soaks import Looks
from campaigns.state import State
from campaigns.together import Together
from campaigns.trial import CLEAN, FAILED, RIGHT, Campaign, Place
from campaigns.verbs import Command

Toy = Callable[[Path], int]
OLD, NEW = b"old " * 2000, b"new " * 2000


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    for folder in (made.inputs, made.work, made.kept):
        folder.mkdir()
    (made.inputs / "value").write_bytes(NEW)
    return made


def faulty(inputs: Path) -> int:
    """Writes in place, in two steps, syncs nothing, and lets errors through."""
    value = (inputs / "value").read_bytes()
    with open("out", "wb", buffering=0) as file:
        file.write(value[:9])
        file.write(value[9:])
    return 0


def sound(inputs: Path) -> int:
    """Writes beside the place, syncs, renames; an error is one line."""
    try:
        value = (inputs / "value").read_bytes()
        with open(".out.writing", "wb", buffering=0) as file:
            file.write(value)
            os.fsync(file.fileno())
        os.rename(".out.writing", "out")
    except OSError as error:
        Path(".out.writing").unlink(missing_ok=True)
        return refuse(str(error))
    return 0


def trusting(inputs: Path) -> int:
    """Goes on from a state that it believes."""
    state = Path(".out.unfinished")
    if not state.exists():
        state.write_bytes(b"half of it")
        Path(".out.unfinished.ends").touch()
    Path("out").write_bytes(state.read_bytes() + b", and the rest")
    state.unlink()
    Path(".out.unfinished.ends").unlink()
    return 0


def refuse(text: str) -> int:
    print(f"lit_merge: error: {text}", file=sys.stderr)
    return 2


def verdicts(campaign: Campaign, trials: int) -> set[str]:
    return {campaign.trial(number).verdict for number in range(trials)}


@pytest.fixture
def disturbed(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Disturbed], Toy], Disturbed]:
    """disturbed(campaign, toy): the campaign, of a command that is the toy, where something stands already."""

    if not can_hold():
        pytest.skip("this kernel holds no system calls")

    def make(kind: type[Disturbed], toy: Toy) -> Disturbed:
        def command(arguments: tuple[str, ...]) -> Callable[[], int]:
            return (lambda: Path("out").write_bytes(OLD) and 0) if arguments else (lambda: toy(place.inputs))

        monkeypatch.setattr(forks, "command", command)
        campaign = kind(place, 0)
        campaign.commands = [Command("toy", (), ("out",), before=() if kind is State else ("before",))]
        return campaign

    return make


@pytest.mark.parametrize("kind", [Kills, PowerCuts, FullDisk, ReadErrors])
def test_files_that_are_written_in_place(kind: type[Disturbed], disturbed: Any) -> None:
    assert FAILED in verdicts(disturbed(kind, faulty), 5)
    assert FAILED not in verdicts(disturbed(kind, sound), 5)


def test_state_that_is_believed(disturbed: Any) -> None:
    assert FAILED in verdicts(disturbed(State, trusting), 5)


def pair(tells: bool) -> int:
    """The first of two processes writes; each says that the other has died, or fails over it."""
    address = "127.0.0.1", int(os.environ["MASTER_PORT"])
    if os.environ["RANK"] == "1":
        ends = time.monotonic() + 10
        while True:
            try:
                other = socket.create_connection(address)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < ends
        if other.recv(4):
            other.sendall(b"yes")
            return 0
        return refuse("process 1 of 2 died") if tells else 1 // 0
    with socket.create_server(address) as server:
        other = server.accept()[0]
        sound(Path("..") / "inputs")
        try:
            other.sendall(b"done")
            answer = other.recv(3)
        except OSError:
            answer = b""
    return 0 if answer else refuse("process 2 of 2 died") if tells else 1 // 0


@pytest.mark.parametrize("tells", [True, False])
def test_processes_that_do_not_say_which_has_died(place: Place, tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_hold():
        pytest.skip("this kernel holds no system calls")
    monkeypatch.setattr(forks, "command", lambda arguments: lambda: pair(tells))
    campaign = Processes(place, 0)
    campaign.commands = [Command("toy", ("fit",), ("out",))]
    found = [campaign.trial(number).verdict for number in range(2)]
    assert found == [CLEAN] * 2 if tells else FAILED in found


@pytest.mark.parametrize("found", [FAILED, CLEAN])
def test_a_reader_that_looks_away(place: Place, found: str) -> None:
    def ours(folder: Path) -> dict[str, np.ndarray]:
        try:
            return {"a": np.array(json.loads((folder / "f.json").read_text())["a"], dtype=float)}
        except (ValueError, LookupError, TypeError) as error:
            if found == CLEAN:
                raise MergeError(str(error)) from error
            return {"a": np.array(0.0)}

    def theirs(folder: Path) -> dict[str, np.ndarray]:
        return {"a": np.array(json.loads((folder / "f.json").read_text())["a"], dtype=float)}

    def make(inputs: Path, folder: Path) -> None:
        (folder / "f.json").write_text('{"a": 1.5, "b": [1, 2]}')

    campaign = Mutations(place, 0)
    campaign.kinds = [Kind("toy", make, {"f.json": mutate_json}, ours, theirs)]
    seen = verdicts(campaign, 12)
    assert seen >= {found, RIGHT}
    assert found == FAILED or FAILED not in seen


def test_numbers_that_are_lost(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(method: str, values: dict[str, np.ndarray], dtype: str, svd: str) -> int:
        np.savez("merged.npz", **{name: one[0] for name, one in values.items()})
        return 0

    # Of the sizes and numbers of tasks that are drawn, this one is of three experts.
    assert Numbers(place, 0).trial(1).verdict == RIGHT
    monkeypatch.setattr(numbers, "merge", lost)
    assert Numbers(place, 0).trial(1).verdict == FAILED


class Same(bytes):
    def equal(self, other: object) -> bool:
        return self == other


@pytest.mark.parametrize("whole", [False, True])
def test_readers_of_what_is_half_written(place: Place, whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: Place, path: Path, order: list[str]) -> None:
        target = path.with_name("beside") if whole else path
        target.write_bytes(order[0].encode() * 100_000)
        os.replace(target, path)

    monkeypatch.setattr(together, "SECONDS", 0.3)
    result = Together(place, 0).overwritten("toy", write, lambda path: [Same(path.read_bytes())])
    assert result.verdict == (RIGHT if whole else FAILED), result


def test_two_writers_that_mix(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "command", lambda arguments: lambda: os.mkdir("out.safetensors"))
    assert Together(place, 0).same(place.emptied()).verdict == FAILED


def test_configurations_that_are_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "command", lambda arguments: lambda: Path("out.safetensors").write_text("x") and 0)
    assert FAILED in verdicts(Settings(place, 0), 8)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("toy", "found"), [(lambda: refuse("no"), CLEAN), (lambda: 1 / 0, FAILED), (die, FAILED)])
def test_options_that_crash(toy: Any, found: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "command", lambda arguments: toy)
    # The work must be readable for users who are nobody here.
    monkeypatch.setattr(options, "NOBODY", os.getuid())
    assert verdicts(Options(place, 0), 3) == {found}


@pytest.mark.parametrize("size", [0, 1_000_000])
def test_a_leak(size: int) -> None:
    look, kept = Looks(200), []
    for _ in range(200):
        kept.append(bytearray(b"x" * size))
        look()
    assert look.result() == bool(size)


def burn(seconds: float) -> None:
    """Computes for so long on a core that others use too."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


def test_a_process_that_others_hold_up_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "SECONDS", 0.5)
    others = [forks.Process(lambda: burn(60)) for _ in range(4)]
    began = time.monotonic()
    slow = forks.Process(lambda: burn(0.15)).end()
    took = time.monotonic() - began
    hanging = [forks.Process(work) for work in (lambda: time.sleep(60), lambda: burn(60))]
    for one in others:
        one.kill()
        one.end()
    assert took > 0.5
    assert slow.code == 0, took
    assert [one.end().code for one in hanging] == [None, None]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks of a test that hang are found soon."""
    monkeypatch.setattr(forks, "SECONDS", 20.0)
