"""Several processes write what one writes, and a merge that was killed goes on."""

import os
import re
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import CART, ESM, TIES, MergeError, MergeMethod, TaskArithmetic, WeightAveraging
from lit_merge.checkpoints.unfinished import unfinished_folder
from lit_merge.choose.sources import Sources
from lit_merge.choose.write import write_bank, write_merge
from lit_merge.cli.main import main
from lit_merge.merge.export import export_bank
from lit_merge.merge.processes import ALONE, LOST, Processes
from tests.forked_commands import as_torchrun, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*second moments.*", "ignore:.*self_consistent overshoots.*")
METHODS = {
    "WeightAveraging": WeightAveraging(),
    "TaskArithmetic": TaskArithmetic(0.4),
    "CART": CART(0.3),
    "TIES": TIES(),
    "ESM": ESM(rank_ratio=0.2, matrices=["*.fc.weight"]),
    "self_consistent": TaskArithmetic("self_consistent", rank_ratio=0.3),
}


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"embed.weight": (5000, 7), "layers.0.mlp.fc.weight": (16, 12), "layers.1.mlp.fc.weight": (12, 16)}
    sizes |= {"layers.0.mlp.fc.bias": (16,), "norm.weight": (12,), "scale": ()}
    found = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    # Rows in which all agree, and whose mean is no longer quite the same number.
    found["embed.weight"][2048:4096] = 0.1
    return found | {"steps": torch.tensor(3), "half": torch.randn(9, generator=generator).half()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("base", "a", "b", "c")):
        save_file(state(seed), folder / f"{name}.safetensors")
    return folder


def sources(files: Path, method: MergeMethod | None, bank: str | None = None) -> Sources:
    experts = None if bank else {task: str(files / f"{task}.safetensors") for task in "abc"}
    base = None if bank else str(files / "base.safetensors")
    return Sources(None, experts, base, None, False, method, None, bank, None, "auto", None, "cpu")


def together(work: Callable[[Processes], object]) -> None:
    """Two threads for two processes, of which each sees only what the other has written."""
    barrier, failed = threading.Barrier(2), []

    def run(rank: int) -> None:
        try:
            work(Processes(rank, 2, wait=barrier.wait))
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@pytest.fixture(params=["one", "two"])
def crew(request: pytest.FixtureRequest) -> Callable[[Callable[[Processes], object]], object]:
    return together if request.param == "two" else lambda work: work(ALONE)


@pytest.fixture(params=[False, True], ids=["whole", "blocks"])
def in_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the embeddings come in five blocks of rows."""
    if request.param:
        monkeypatch.setattr("lit_merge.experts.experts.BLOCK", 3 * 7 * 1024)
    return bool(request.param)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_written_is_what_the_bank_holds(
    name: str, files: Path, tmp_path: Path, crew: Any, in_blocks: bool
) -> None:
    bank = sources(files, METHODS[name]).bank()
    export_bank(bank, tmp_path / "expected")
    crew(lambda processes: write_bank(sources(files, METHODS[name]), tmp_path / "bank", processes=processes))
    for file in ("bank.safetensors", "bank.json"):
        assert (tmp_path / "bank" / file).read_bytes() == (tmp_path / "expected" / file).read_bytes()
    crew(lambda processes: write_merge(sources(files, METHODS[name]), str(tmp_path / "merged"), processes=processes))
    saved = sources(files, None, str(tmp_path / "bank"))
    crew(lambda processes: write_merge(saved, str(tmp_path / "again.safetensors"), processes=processes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_merge.experts.experts.BLOCK", 10**9)
        write_merge(sources(files, METHODS[name]), str(tmp_path / "expected.safetensors"))
    expected, found = load_file(tmp_path / "expected.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(found[weight], value) for weight, value in expected.items())
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.equal(again[weight], value) for weight, value in bank.merge().items())
    # Without a bank, sums of all tasks may be rounded otherwise.
    for weight, value in again.items():
        torch.testing.assert_close(found[weight], value)
    assert found.keys() == again.keys() == bank.origin.keys()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_bank_is_cut_as_it_is_written(files: Path, tmp_path: Path) -> None:
    export_bank(sources(files, CART(0.9)).bank(), tmp_path / "expected", rank_ratio=0.5, energy=0.7, dtype="float16")
    write_bank(sources(files, CART(0.9)), tmp_path / "bank", 0.5, 0.7, "float16")
    for file in ("bank.safetensors", "bank.json"):
        assert (tmp_path / "bank" / file).read_bytes() == (tmp_path / "expected" / file).read_bytes()


def test_blocks_are_made(files: Path, in_blocks: bool) -> None:
    parts = list(sources(files, CART()).job().parts(None, in_blocks=["embed.weight"]))
    assert [part.row for part in parts if part.name == "embed.weight"] == (
        [0, 1024, 2048, 3072, 4096] if in_blocks else [None]
    )


def test_not_a_number_in_a_block_is_counted_in_the_whole(files: Path, tmp_path: Path, in_blocks: bool) -> None:
    broken = load_file(files / "b.safetensors")
    broken["embed.weight"][-2:, 0] = torch.nan
    save_file(broken, tmp_path / "b.safetensors")
    for name in ("a", "c", "base"):
        (tmp_path / f"{name}.safetensors").symlink_to(files / f"{name}.safetensors")
    with pytest.raises(MergeError, match=r"b.safetensors: embed.weight holds NaN or infinity in 2 of 35,000 places"):
        write_merge(sources(tmp_path, CART()), str(tmp_path / "merged"))
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]


class Killed(BaseException):
    """As an interrupt: nothing of the package catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """The merge ends at this weight; answers the names of those that are merged."""
    inner, seen = CART.rest, []

    def rest(self: CART, weight: Any) -> Any:
        seen.append(weight.name)
        if len(seen) == count:
            raise Killed
        return inner(self, weight)

    monkeypatch.setattr(CART, "rest", rest)
    return seen


@pytest.mark.parametrize("write", [write_merge, write_bank])
def test_the_same_command_goes_on(
    write: Any, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(sources(files, CART(0.3)), str(tmp_path / "expected"))
    seen = kill_at(monkeypatch, 4)
    with pytest.raises(Killed):
        write(sources(files, CART(0.3)), str(tmp_path / "out"))
    folder = unfinished_folder(tmp_path / "out")
    assert folder.exists()
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    write(sources(files, CART(0.3)), str(tmp_path / "out"))
    assert re.search(r"going on: \d of 8 weights are finished", capsys.readouterr().err)
    assert len(seen) == len(set(seen)) + 1  # only the one at which it was killed, twice
    for file in (tmp_path / "expected").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert not folder.exists()


def test_another_command_starts_afresh(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out.safetensors")
    for method in (CART(0.3), CART(0.4)):
        with monkeypatch.context() as patch:
            kill_at(patch, 4)
            with pytest.raises(Killed):
                write_merge(sources(files, method), output)
    assert "starting afresh" in capsys.readouterr().err
    write_merge(sources(files, CART(0.3)), output)
    assert "starting afresh" in capsys.readouterr().err
    expected = sources(files, CART(0.3)).bank().merge()
    assert all(torch.equal(expected[name], value) for name, value in load_file(output).items())


def test_what_is_damaged_is_done_again(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.safetensors"
    seen = kill_at(monkeypatch, 4)
    with pytest.raises(Killed):
        write_merge(sources(files, CART(0.3)), str(output))
    folder = unfinished_folder(output)
    whole = folder / output.name
    whole.write_bytes(b"\0" * whole.stat().st_size)  # a machine without power: lengths without values
    with (folder / "finished-1-0.jsonl").open("a") as lines:
        lines.write('{"weight": "norm.we')
    write_merge(sources(files, CART(0.3)), str(output))
    assert len(seen) == 4 + 5  # all that differ between experts and are not decomposed
    expected = sources(files, CART(0.3)).bank().merge()
    assert all(torch.equal(expected[name], value) for name, value in load_file(output).items())


def test_two_commands_at_once(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = str(tmp_path / "out.safetensors")

    def again(*_: object) -> None:
        monkeypatch.undo()
        write_merge(sources(files, CART()), output)

    monkeypatch.setattr(CART, "rest", again)
    with pytest.raises(MergeError, match=r"another process is at work on .*out.safetensors: wait, or choose another"):
        write_merge(sources(files, CART()), output)


@pytest.fixture
def command(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Any) -> list[str]:
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    monkeypatch.chdir(tmp_path)
    forks.said.write_text("")
    experts = {task: str(files / f"{task}.safetensors") for task in "abc"}
    return ["merge", "--model.experts", str(experts), "--model.method", "tests.watched.MortalCART"]


def test_a_process_dies_and_the_same_command_goes_on(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], forks: Any
) -> None:
    """Real processes: the second is killed, then both write what one writes."""
    assert main([*command, "--output", "one.safetensors"]) == 0
    two = [*command, "--output", "two.safetensors", "--devices", "2"]
    capfd.readouterr()
    assert main(two) == 2
    assert re.fullmatch(
        r"lit_merge: error: process 2 of 2 was killed by SIGKILL: two.safetensors was not written; the same command "
        r"goes on from what is finished \(.two.safetensors.unfinished\)\n",
        capfd.readouterr().err,
    )
    assert forks.said.read_text() == ""
    assert not Path("two.safetensors").exists()
    assert main(two) == 0
    assert capfd.readouterr().out.count("Written to two.safetensors") == 1
    going_on, selected = forks.said.read_text().splitlines()
    assert re.fullmatch(r"going on: \d of 8 weights are finished \(.two.safetensors.unfinished\)", going_on)
    assert selected.startswith("Decomposed as matrices: 2 of 3 2-D weights (")
    assert Path("two.safetensors").read_bytes() == Path("one.safetensors").read_bytes()
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("merging-"))
    assert left == ["ended", "one.safetensors", "two.safetensors"]


@pytest.mark.parametrize("end", ["interrupted", "killed"])
def test_all_processes_end_with_the_one_that_started_them(
    end: str, command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str], forks: Any
) -> None:
    two = [*command, "--model.method.end", "waiting", "--output", "two.safetensors", "--devices", "2"]

    def started() -> list[int]:
        return [int(path.name.split("-")[1]) for path in tmp_path.glob("merging-*")]

    def wait() -> None:
        wait_until(lambda: Path("waiting").exists() and len(started()) == 2)

    def interrupt() -> None:
        """As a keyboard does: every process gets it."""
        try:
            wait()
        finally:
            for process in (*started(), os.getpid()):
                os.kill(process, signal.SIGINT)

    if end == "interrupted":
        # A shell's background jobs, as these tests may be, ignore it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        keyboard = threading.Thread(target=interrupt)
        keyboard.start()
        assert main(two) == 130
        signal.signal(signal.SIGINT, before)
        keyboard.join()
        assert capfd.readouterr().err == "lit_merge: interrupted\n"
    else:
        assert forks.run(*two, folder=tmp_path, kill_after=wait) == [-signal.SIGKILL]
        wait_until(lambda: not any(map(lives, started())), 10)
    assert not any(map(lives, started()))
    assert forks.said.read_text() == ""
    Path("ended").touch()
    assert main(two) == 0
    assert "going on: " in forks.said.read_text()


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_error_of_one_process_ends_all(
    command: list[str], files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], forks: Any
) -> None:
    """The second process reads this weight."""
    broken = load_file(files / "b.safetensors")
    broken["norm.weight"][3] = torch.inf
    save_file(broken, tmp_path / "broken.safetensors")
    command[2] = command[2].replace(str(files / "b.safetensors"), "broken.safetensors")
    assert main([*command[:-1], "CART", "--output", "two.safetensors", "--devices", "2"]) == 2
    line = "lit_merge: error: broken.safetensors: norm.weight holds NaN or infinity in 1 of 12 places\n"
    assert capfd.readouterr().err == line
    assert forks.said.read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]


def test_a_bug_in_one_process_is_shown(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--model.method.end", "broken", "--output", "two.safetensors", "--devices", "2"]) == 2
    *trace, line = capfd.readouterr().err.splitlines()
    assert trace[-1] == "ZeroDivisionError: a bug"
    assert line.startswith("lit_merge: error: process 2 of 2 ended with code 1: two.safetensors was not written")


def test_processes_of_torchrun(command: list[str], files: Path, tmp_path: Path, forks: Any) -> None:
    """They end when one of them does, and say once what all of them see."""
    command[2] = command[2].replace("}", f", 'd': '{files}/a.safetensors'}}")
    run = partial(forks.run, *command, "--output", "two.safetensors", folder=tmp_path, environments=as_torchrun(2))
    assert run("--devices", "3") == [2, 2]
    assert "devices=3: expected 2, the number of processes that were started" in forks.said.read_text()
    assert run("--devices", "2") == [LOST, -signal.SIGKILL]
    assert run("--devices", "2") == [0, 0]
    for text in ("Written to two.safetensors", "the experts a and d are identical: is a path wrong?"):
        assert forks.said.read_text().count(text) == 1
    assert forks.run(*command, "--output", "one.safetensors", folder=tmp_path) == [0]
    assert Path("two.safetensors").read_bytes() == Path("one.safetensors").read_bytes()


def test_bad_devices(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for more, said in (
        (["--devices", "0"], "devices=0: expected the number of processes, at least 1"),
        (["--accelerator", "gpu", "--devices", "9"], "accelerator=gpu with devices=9: this machine has"),
        (["--accelerator", "tpu"], "accelerator"),
    ):
        assert main([*command, "--output", "x.safetensors", *more]) == 2
        assert said in capsys.readouterr().err
    assert not Path("x.safetensors").exists()


def test_shares_are_even_and_whole() -> None:
    costs = {f"{i}": float(i % 7 + 1) for i in range(40)}
    shares = [Processes(rank, 3).share(costs) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(costs)
    loads = [sum(costs[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= 7
