"""TaskBank: indexing, truncation, precision, fingerprint, files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_merge import CART, IsoC, MergeError, TaskArithmetic, TaskBank, build_bank
from tests.saved_banks import without_digest


@pytest.fixture
def bank(tiny: Any) -> TaskBank:
    return build_bank(tiny.experts, method=CART(rank_ratio=0.5, scaling=1.5))


def test_coefficients_broadcast(bank: TaskBank) -> None:
    whole = torch.full(bank.coefficients.shape, 1.5)
    for given in (None, 1.5, torch.tensor(1.5), whole[:, :1], whole):
        merged = bank.merge(whole)
        for name, value in bank.merge(given).items():
            assert torch.equal(value, merged[name])
    with pytest.raises(MergeError, match=r"shape \[2, 2\]"):
        bank.merge(torch.ones(2, 2))


def test_task_indexing(bank: TaskBank, tiny: Any) -> None:
    only = torch.zeros_like(bank.coefficients)
    only[1] = 1
    merged = bank.merge(only)
    for name, value in bank.expert("beta").items():
        torch.testing.assert_close(value, merged[name])
    assert bank.only("beta").tasks == ("beta",)
    with pytest.raises(MergeError, match="no task 'delta'") as error:
        bank.expert("delta")
    assert error.value.task == "delta"
    shared = build_bank(tiny.experts, tiny.base, method=IsoC())
    with pytest.raises(MergeError, match="one delta for all tasks"):
        shared.expert("beta")


def test_truncation_equals_building_at_that_rank(bank: TaskBank, tiny: Any) -> None:
    small = build_bank(tiny.experts, method=CART(rank_ratio=0.2, scaling=1.5))
    cut = bank.truncate(0.2)
    assert cut.ranks == small.ranks
    small_merged = small.merge()
    for name, value in cut.merge().items():
        torch.testing.assert_close(value, small_merged[name], rtol=1e-5, atol=1e-6)
    for ratio in (0.0, 1.1):
        with pytest.raises(MergeError, match="outside"):
            bank.truncate(ratio)


def test_fingerprint_tells_banks_apart_but_not_coefficients(bank: TaskBank, tiny: Any) -> None:
    import dataclasses

    moved = dataclasses.replace(bank, coefficients=bank.coefficients + 1)
    assert moved.fingerprint == bank.fingerprint
    others = [bank.truncate(0.2), bank.to(torch.float16), build_bank(tiny.experts, tiny.base, method=TaskArithmetic())]
    assert len({bank.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_saved_smaller_in_half_precision(bank: TaskBank, tmp_path: Path) -> None:
    bank.save(tmp_path / "full")
    bank.truncate(0.1).to(torch.float16).save(tmp_path / "small")
    sizes = [(tmp_path / name / "bank.safetensors").stat().st_size for name in ("full", "small")]
    assert sizes[1] < 0.6 * sizes[0]
    for name, value in TaskBank.load(tmp_path / "small").merge().items():
        assert value.dtype == bank.origin[name].dtype


def test_damaged_folders(bank: TaskBank, tmp_path: Path) -> None:
    path = tmp_path / "bank"
    bank.save(path)
    without_digest(path)
    about = (path / "bank.json").read_text()
    for text, said in (
        ("{", "damaged"),
        ("[]", "format_version"),
        (about.replace('"format_version": 1', '"format_version": 99'), "update it"),
        (json.dumps(json.loads(about) | {"tasks": [*bank.tasks, "delta"]}), "different banks"),
    ):
        (path / "bank.json").write_text(text)
        with pytest.raises(MergeError, match=said) as error:
            TaskBank.load(path)
        assert "bank.json" in str(error.value)
    (path / "bank.json").unlink()
    with pytest.raises(MergeError, match="no task bank"):
        TaskBank.load(path)
    with pytest.raises(MergeError, match="--overwrite"):
        bank.save(path)


def test_bank_does_not_follow_the_state_dict_it_was_built_from(tiny: Any) -> None:
    experts = {t: {"blocks.0.mlp.w": torch.randn(4, 4)} for t in ("a", "b", "c")}
    for state in experts.values():
        state["same"] = torch.ones(2)
    bank = build_bank(experts, method=CART(rank_ratio=1.0))
    before = {name: value.clone() for name, value in bank.merge().items()}
    for state in experts.values():
        state["same"].zero_()
        state["blocks.0.mlp.w"].zero_()
    for name, value in bank.merge().items():
        assert torch.equal(value, before[name])


def test_a_merge_that_its_dtype_cannot_hold_is_refused(bank: TaskBank) -> None:
    only = torch.eye(len(bank.tasks))[0, :, None]
    parts = bank.merge(only, torch.float64), bank.merge(0 * only, torch.float64)
    step, name = max(((parts[0][name] - parts[1][name]).abs().max().item(), name) for name in bank.layers)
    assert all(value.isfinite().all() for value in bank.merge(6e4 / step * only, torch.float16).values())
    with pytest.raises(MergeError, match=r"would hold NaN or infinity in .*float16 holds numbers up to 6.55e\+04"):
        bank.merge(7e4 / step * only, torch.float16)
    with pytest.raises(MergeError, match="would hold NaN or infinity") as error:
        bank.merge(torch.where(torch.tensor([key == name for key in bank.layers]), 3.4e38, 1) * 2 * only / step)
    assert error.value.weight == name
