"""Banks that were damaged or made by hand: refused when they are opened, in one line that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import CART, MergeError, TaskBank, build_bank

MATRIX, BIAS = "resblocks.0.mlp.c_fc.weight", "resblocks.0.mlp.c_fc.bias"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    experts = {f"t{i}": {MATRIX: torch.randn(12, 8), BIAS: torch.randn(12)} for i in range(3)}
    build_bank(experts, method=CART(rank_ratio=0.5)).save(tmp_path / "bank")
    return tmp_path / "bank"


def refused(folder: Path, told: str) -> None:
    with pytest.raises(MergeError, match=told) as error:
        TaskBank.load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("key", "change", "told"),
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
def test_tensors_that_do_not_fit(key: str, change: Callable[[Tensor], Tensor], told: str, folder: Path) -> None:
    tensors = load_file(folder / "bank.safetensors")
    save_file(tensors | {key: change(tensors[key]).contiguous()}, folder / "bank.safetensors")
    refused(folder, told)


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
    refused(folder, f"{field}|{MATRIX}")


@pytest.mark.parametrize("key", ["origin/last.weight", "U/last.weight", "S/last.weight", f"delta/{BIAS}"])
def test_values_that_are_no_numbers_are_refused_wherever_they_are_read(key: str, tmp_path: Path) -> None:
    # The first weights are good: in tests, the types of functions are checked by one value of a mapping.
    names = {MATRIX: (12, 8), BIAS: (12,), "last.weight": (8, 12)}
    experts = {f"t{i}": {name: torch.randn(shape) for name, shape in names.items()} for i in range(3)}
    build_bank(experts, method=CART(rank_ratio=0.5, matrices="all")).save(tmp_path / "bank")
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
