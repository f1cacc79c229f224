"""Banks that were damaged or made by hand: refused when they are opened, in one line that names the file."""

import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import CART, MergeError, TaskBank, build_bank
from lit_merge.adaptation.stored_bank import StoredBank
from lit_merge.checkpoints import SafetensorsFile
from lit_merge.checkpoints.input_file import InputFile
from tests.saved_banks import without_digest

MATRIX, BIAS = "resblocks.0.mlp.c_fc.weight", "resblocks.0.mlp.c_fc.bias"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    experts = {f"t{i}": {MATRIX: torch.randn(12, 8), BIAS: torch.randn(12)} for i in range(3)}
    build_bank(experts, method=CART(rank_ratio=0.5)).save(tmp_path / "bank")
    without_digest(tmp_path / "bank")
    return tmp_path / "bank"


def refused(folder: Path, said: str) -> None:
    with pytest.raises(MergeError, match=said) as error:
        TaskBank.load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        (f"S/{MATRIX}", lambda t: t[:, :1], "U/.* expected floating point of"),
        (f"U/{MATRIX}", lambda t: t[..., :-1], "U/.* expected floating point of"),
        (f"V/{MATRIX}", lambda t: t[:, :-1], "V/.* expected floating point of"),
        (f"V/{MATRIX}", lambda t: t.int(), "V/.* is torch.int32"),
        (f"S/{MATRIX}", lambda t: t[:, :0], "expected a matrix"),
        (f"origin/{MATRIX}", lambda t: t[:-1], "U/.* expected floating point of"),
        (f"origin/{MATRIX}", lambda t: torch.tensor(1.0), "expected a matrix"),
        (f"origin/{BIAS}", lambda t: t.int(), "origin/.* is torch.int32, but torch.float32 in bank.json"),
        (f"delta/{BIAS}", lambda t: t[:, 0], "delta/.* expected floating point of"),
        (f"delta/{BIAS}", lambda t: t[:1], "delta/.* expected floating point of"),
        ("coefficients", lambda t: t[None], "expected tasks × weights"),
        ("coefficients", lambda t: t.int(), "coefficients are torch.int32"),
        ("coefficients", lambda t: t[:2], "numbers of tasks or weights differ"),
        ("coefficients", lambda t: t * torch.nan, "coefficients holds NaN or infinity"),
        ("coefficients", lambda t: t / 0, "coefficients holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_fit(key: str, change: Callable[[Tensor], Tensor], said: str, folder: Path) -> None:
    tensors = load_file(folder / "bank.safetensors")
    save_file(tensors | {key: change(tensors[key]).contiguous()}, folder / "bank.safetensors")
    refused(folder, said)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtypes", {MATRIX: "float31", BIAS: "float32"}),
        ("dtypes", {MATRIX: "load", BIAS: "float32"}),
        ("dtypes", {MATRIX: None, BIAS: "float32"}),
        ("ranks", []),
        ("nbytes", "x"),
        ("tasks", [None, "t1", "t2"]),
        ("tasks", ["t1", "t1", "t2"]),
        ("tasks", ["\ud800", "t1", "t2"]),
        ("layers", [1, 2]),
    ],
)
def test_descriptions_that_are_none(field: str, value: Any, folder: Path) -> None:
    path = folder / "bank.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    refused(folder, f"{field}|{MATRIX}|is no text")


@pytest.mark.parametrize("key", ["origin/last.weight", "U/last.weight", "S/last.weight", f"delta/{BIAS}"])
def test_values_that_are_no_numbers_are_refused_wherever_they_are_read(key: str, tmp_path: Path) -> None:
    # The first weights are good: in tests, the types of functions are checked by one value of a mapping.
    names = {MATRIX: (12, 8), BIAS: (12,), "last.weight": (8, 12)}
    experts = {f"t{i}": {name: torch.randn(shape) for name, shape in names.items()} for i in range(3)}
    build_bank(experts, method=CART(rank_ratio=0.5, matrices="all")).save(tmp_path / "bank")
    without_digest(tmp_path / "bank")
    tensors = load_file(tmp_path / "bank" / "bank.safetensors")
    tensors[key].view(-1)[0] = torch.nan
    save_file(tensors, tmp_path / "bank" / "bank.safetensors")
    bank, (frame, file) = TaskBank.load(tmp_path / "bank"), TaskBank.open(tmp_path / "bank")
    for use in (
        bank.merge,
        lambda: bank.truncate(energy=0.5).merge(),
        lambda: bank.save(tmp_path / "again"),
        lambda: frame.reading(file.read).weight(key.partition("/")[2]),
    ):
        with pytest.raises(MergeError, match=f"bank.safetensors: {key} holds NaN or infinity"):
            use()
    assert not (tmp_path / "again").exists()


def two_banks(place: Path) -> list[TaskBank]:
    """Of equal names and shapes, whose tasks come in another order."""
    torch.manual_seed(0)
    experts = {f"t{i}": {BIAS: torch.randn(12), MATRIX: torch.randn(12, 8)} for i in range(3)}
    found = []
    for name, tasks in (("one", ("t0", "t1", "t2")), ("other", ("t2", "t0", "t1"))):
        found.append(build_bank({task: experts[task] for task in tasks}, method=CART(rank_ratio=0.5)))
        found[-1].save(place / name)
    return found


def test_the_files_of_two_banks_are_not_taken_for_one(tmp_path: Path) -> None:
    two_banks(tmp_path)
    for file in ("bank.json", "bank.safetensors"):
        shutil.copytree(tmp_path / "one", tmp_path / file)
        shutil.copyfile(tmp_path / "other" / file, tmp_path / file / file)
        refused(tmp_path / file, "bank.json are of different banks")
    # Of adaptation of one bank: all tensors but the coefficients are equal.
    bank = TaskBank.load(tmp_path / "one")
    replace(bank, coefficients=bank.coefficients + 1).save(tmp_path / "adapted")
    shutil.copyfile(tmp_path / "adapted" / "bank.json", tmp_path / "one" / "bank.json")
    refused(tmp_path / "one", "bank.json are of different banks")


def test_a_description_or_coefficients_that_were_changed(tmp_path: Path) -> None:
    two_banks(tmp_path)
    about, file = tmp_path / "one" / "bank.json", tmp_path / "one" / "bank.safetensors"
    text = about.read_text()
    about.write_text(text.replace('"t0"', '"t9"', 1))
    refused(tmp_path / "one", "are not as they were saved")
    about.write_text(json.dumps(json.loads(text)))  # laid out in another way
    assert TaskBank.load(tmp_path / "one").tasks == ("t0", "t1", "t2")
    metadata = SafetensorsFile(file).metadata
    tensors = load_file(file)
    save_file(tensors, file)
    refused(tmp_path / "one", "was made anew")
    save_file(tensors | {"coefficients": tensors["coefficients"] * 2}, file, metadata)
    refused(tmp_path / "one", "are not as they were saved")


def test_equal_banks_are_equal_files(tmp_path: Path) -> None:
    bank, _ = two_banks(tmp_path)
    bank.save(tmp_path / "again")
    for file in ("bank.json", "bank.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()


def test_a_bank_that_is_overwritten_while_it_is_loaded(tmp_path: Path) -> None:
    """By one of another order of tasks: each load answers every task's own weights, of one bank or the other."""
    banks = two_banks(tmp_path)
    banks[0].save(tmp_path / "bank")
    wanted = {task: banks[0].expert(task) for task in banks[0].tasks}
    writer = os.fork()
    if not writer:
        for i in itertools.count():
            banks[1 - i % 2].save(tmp_path / "bank", overwrite=True)
            time.sleep(0.02)  # without a pause no folder stays for as long as it takes to open it
    orders = []
    try:
        # At least so many loads, and until both banks have been met.
        while len(orders) < 20 or (len(set(orders)) < 2 and len(orders) < 500):
            loaded = TaskBank.load(tmp_path / "bank")
            orders.append(loaded.tasks)
            for task in loaded.tasks:
                found = loaded.expert(task)
                for name, value in wanted[task].items():
                    torch.testing.assert_close(found[name], value)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    assert len(set(orders)) == 2


def test_a_bank_in_use_is_written_into(tmp_path: Path) -> None:
    """No map of it: that would kill Python."""
    _, bank = two_banks(tmp_path)
    loaded, held = TaskBank.load(tmp_path / "other"), StoredBank(TaskBank.load(tmp_path / "other"))
    os.truncate(tmp_path / "other" / "bank.safetensors", 4096)
    with pytest.raises(MergeError, match=r"other/bank\.safetensors: could not read .* the file was changed"):
        loaded.origin[MATRIX]
    merged = held.open(torch.device("cpu")).merge()  # small: it is in memory
    assert all(torch.equal(value, merged[name]) for name, value in bank.merge().items())


def test_shapes_are_known_without_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, _ = two_banks(tmp_path)
    loaded, read = TaskBank.load(tmp_path / "one"), []
    values = InputFile.read_into
    monkeypatch.setattr(InputFile, "read_into", lambda *args: (read.append(args[3]), values(*args))[1])
    cut = loaded.truncate(rank_ratio=0.25)
    assert (loaded.nbytes, loaded.ranks, loaded.shapes) == (bank.nbytes, bank.ranks, bank.shapes)
    assert (cut.nbytes, cut.ranks) == (bank.truncate(rank_ratio=0.25).nbytes, {MATRIX: 2})
    # In tests, the types of functions are checked by the first value of a mapping, which is of the bias.
    assert not [name for name in read if MATRIX in name]
    assert cut.tensors()[f"V/{MATRIX}"].shape == (3, 8, 2)
    assert [name for name in read if MATRIX in name] == [f"V/{MATRIX}"]
    # Forward and backward of a merge ask for each factor as often as it takes part.
    read.clear()
    coefficients = loaded.coefficients.clone().requires_grad_()
    torch.stack([value.sum() for value in loaded.merge(coefficients).values()]).sum().backward()
    assert read.count(f"U/{MATRIX}") == read.count(f"V/{MATRIX}") == 2


@pytest.mark.parametrize("key", ["origin/last.weight", "U/last.weight", "delta/last.bias"])
def test_values_that_were_damaged_are_seen_when_they_are_read(key: str, tmp_path: Path) -> None:
    """One bit of a finite number, of the second task's part, in a file that is otherwise whole."""
    # The first weights are good: see above.
    shapes = {MATRIX: (12, 8), BIAS: (12,), "last.bias": (8,), "last.weight": (8, 12)}
    experts = {f"t{i}": {name: torch.randn(shape) for name, shape in shapes.items()} for i in range(3)}
    one = build_bank(experts, method=CART(rank_ratio=0.5, matrices="all"))
    one.save(tmp_path / "one")
    path = tmp_path / "one" / "bank.safetensors"
    metadata, tensors = SafetensorsFile(path).metadata, load_file(path)
    row = tensors[key] if key.startswith("origin") else tensors[key][1]
    row.view(-1).view(torch.int32)[3] ^= 1
    save_file(tensors, path, metadata)
    loaded = TaskBank.load(tmp_path / "one")  # nothing of it is read yet
    said = f"bank.safetensors: {key} is not as it was saved: its checksum is another one"
    with pytest.raises(MergeError, match=said):
        loaded.merge()
    with pytest.raises(MergeError, match=said):
        TaskBank.load(tmp_path / "one").expert("t1")
    if not key.startswith("origin"):
        for task in ("t0", "t2"):  # whose own parts are whole
            found = TaskBank.load(tmp_path / "one").expert(task)
            assert all(torch.equal(value, found[name]) for name, value in one.expert(task).items())
