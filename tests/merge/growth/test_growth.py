"""Banks that gain and lose tasks, against banks that are built of the experts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import (
    AWD,
    CART,
    TSVM,
    IsoC,
    MergeError,
    TaskArithmetic,
    TaskBank,
    TSVCompress,
    WeightAveraging,
    add_task,
    build_bank,
    remove_task,
    rename_task,
)
from lit_merge.bank.low_rank import LowRank
from lit_merge.cli.main import main
from lit_merge.merge.compressed_bank import compress_bank
from lit_merge.merge.growth.checks import check_task_name

TWO = ("alpha", "beta")
C_FC = "transformer.resblocks.0.mlp.c_fc.weight"
BIAS = "transformer.resblocks.0.mlp.c_fc.bias"


def of(tiny: Any, tasks: Any, method: Any, **options: Any) -> TaskBank:
    return build_bank({task: tiny.experts[task] for task in tasks}, tiny.base, method=method, **options)


def assert_same(found: TaskBank, expected: TaskBank, tolerance: float = 1e-5) -> None:
    assert found.tasks == expected.tasks
    assert found.layers == expected.layers
    assert found.ranks == expected.ranks
    torch.testing.assert_close(found.coefficients, expected.coefficients, rtol=0, atol=0)
    for task in (None, *found.tasks):
        one, other = (bank.merge() if task is None else bank.expert(task) for bank in (found, expected))
        for name, value in other.items():
            torch.testing.assert_close(one[name], value, rtol=tolerance, atol=tolerance)


def inputs_of(bank: TaskBank) -> list[str]:
    inputs: Any = bank.recipe["inputs"]
    return list(inputs)


EXACT = [
    TaskArithmetic(0.4),
    TaskArithmetic(rank_ratio=0.3),
    TSVCompress(),
]


@pytest.mark.parametrize("method", EXACT, ids=str)
def test_tasks_by_themselves_grow_exactly(tiny: Any, method: Any) -> None:
    change = add_task(of(tiny, TWO, method), "gamma", tiny.experts["gamma"])
    assert_same(change.bank, of(tiny, tiny.tasks, method))
    assert change.cut == 0
    assert change.note.startswith("exact")
    # What goes was never of use to the others. TSV-Compress has the room of three tasks for two then.
    left = remove_task(change.bank, "beta").bank
    assert inputs_of(left) == ["alpha", "gamma"]
    if method != TSVCompress():
        assert_same(left, of(tiny, ("alpha", "gamma"), method))
    kept = left.expert("gamma")
    for name, value in change.bank.expert("gamma").items():
        assert torch.equal(kept[name], value)


def test_averages(tiny: Any) -> None:
    bank = of(tiny, TWO, WeightAveraging())
    grown = add_task(bank, "gamma", tiny.experts["gamma"]).bank
    files = [load_file(path) for path in tiny.experts.values()]
    for name, value in grown.merge().items():
        expected = np.mean([file[name].double().numpy() for file in files], axis=0)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(MergeError, match="give the expert of gamma with --expert"):
        remove_task(grown, "gamma")
    back = remove_task(grown, "gamma", expert=tiny.experts["gamma"]).bank
    merged = back.merge()
    for name, value in bank.merge().items():
        torch.testing.assert_close(merged[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:CART of two experts")
def test_cart_moves_its_mean_and_recentres(tiny: Any) -> None:
    files = {task: load_file(path) for task, path in tiny.experts.items()}
    bank = of(tiny, TWO, CART(rank_ratio=0.25, scaling=1.5))
    change = add_task(bank, "gamma", tiny.experts["gamma"])
    grown, scratch = change.bank, of(tiny, tiny.tasks, CART(rank_ratio=0.25, scaling=1.5))
    assert grown.ranks == scratch.ranks
    assert torch.equal(grown.coefficients, scratch.coefficients)
    lost = whole = 0.0
    for name in grown.origin:
        experts = np.stack([files[task][name].double().numpy() for task in tiny.tasks])
        mean = experts.mean(0)
        np.testing.assert_allclose(grown.origin[name].numpy(), mean, rtol=1e-5, atol=1e-6)
        if name not in grown.layers:
            assert (experts == experts[0]).all()
            continue
        delta = grown.deltas[name]
        if not isinstance(delta, LowRank):
            np.testing.assert_allclose(delta.numpy(), experts - mean, rtol=1e-4, atol=1e-5)
            continue
        # Of the new task the whole expert was seen; of the others what the bank had of them.
        old = bank.deltas[name]
        assert isinstance(old, LowRank)
        known = old.to_dense().double().numpy() + bank.origin[name].double().numpy()
        for t, expert in enumerate([*known, experts[2]]):
            u, s, v = np.linalg.svd(expert - mean, full_matrices=False)
            cut = (u[:, : delta.rank] * s[: delta.rank]) @ v[: delta.rank]
            np.testing.assert_allclose(delta.to_dense()[t].numpy(), cut, rtol=1e-3, atol=1e-4)
            if t < 2:
                lost, whole = lost + (s[delta.rank :] ** 2).sum(), whole + (s**2).sum()
    assert change.cut == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert "origin exact" in change.note
    assert f"{100 * change.cut:.2g} %" in change.note
    assert grown.recipe["changes"] == [f"added gamma: {change.note}"]
    assert grown.recipe["inputs"] == scratch.recipe["inputs"]
    assert grown.method == scratch.method


@pytest.mark.filterwarnings("ignore:CART of two experts")
def test_cart_of_full_rank_is_exact(tiny: Any) -> None:
    method = CART(rank_ratio=1.0, scaling=0.5)
    grown = add_task(of(tiny, TWO, method), "gamma", tiny.experts["gamma"])
    assert grown.cut < 1e-5
    whole = of(tiny, tiny.tasks, method)
    assert_same(grown.bank, whole, 1e-4)
    for expert in (None, tiny.experts["alpha"]):
        left = remove_task(whole, "alpha", expert=expert)
        assert_same(left.bank, of(tiny, ("beta", "gamma"), method), 1e-4)


def test_cart_loses_a_task_with_and_without_its_expert(tiny: Any, tmp_path: Path) -> None:
    method = CART(rank_ratio=0.25, scaling=1.5)
    bank = of(tiny, tiny.tasks, method)
    alpha, beta, gamma = (load_file(tiny.experts[task])[C_FC].double().numpy() for task in tiny.tasks)
    exact = remove_task(bank, "alpha", expert=tiny.experts["alpha"])
    np.testing.assert_allclose(exact.bank.origin[C_FC].numpy(), (beta + gamma) / 2, rtol=1e-4, atol=1e-5)
    near = remove_task(bank, "alpha")
    own = bank.expert("alpha")[C_FC].double().numpy()
    expected = (alpha + beta + gamma - own) / 2
    np.testing.assert_allclose(near.bank.origin[C_FC].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert "origin exact" in exact.note
    assert "origin approximate" in near.note
    # The next change starts from that origin, whatever is known of its own expert.
    assert "origin approximate" in add_task(near.bank, "alpha", tiny.experts["alpha"]).note
    assert "origin exact" in add_task(exact.bank, "alpha", tiny.experts["alpha"]).note
    compress_bank(bank, tmp_path / "small", dtype="int8")
    rounded = remove_task(TaskBank.load(tmp_path / "small"), "alpha", expert=tiny.experts["alpha"])
    assert "origin approximate" in rounded.note
    with pytest.raises(MergeError, match=r"beta.safetensors is not the expert that the bank has of alpha"):
        remove_task(bank, "alpha", expert=tiny.experts["beta"])


def test_weights_in_which_the_first_experts_agree(tiny: Any, tmp_path: Path) -> None:
    """They have no delta before, and one afterwards."""
    files = {task: load_file(path) for task, path in tiny.experts.items()}
    base = load_file(tiny.base)
    for task in TWO:
        for name in (C_FC, BIAS):
            files[task][name] = base[name]
        save_file(files[task], tmp_path / f"{task}.safetensors")
    paths = {task: f"{tmp_path}/{task}.safetensors" for task in TWO}
    for method in (TaskArithmetic(rank_ratio=0.5), TaskArithmetic(), CART(rank_ratio=0.5, scaling=1.5)):
        with pytest.warns(UserWarning, match="two experts") if isinstance(method, CART) else _nothing():
            bank = build_bank(paths, tiny.base, method=method)
        assert C_FC not in bank.layers
        grown = add_task(bank, "gamma", tiny.experts["gamma"]).bank
        scratch = build_bank(paths | {"gamma": tiny.experts["gamma"]}, tiny.base, method=method)
        assert set(grown.layers) == set(scratch.layers)
        for task in grown.tasks:
            for name in (C_FC, BIAS):
                one, other = (bank.only(task).weight(name) for bank in (grown, scratch))
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grown.weight(C_FC), scratch.weight(C_FC), rtol=1e-4, atol=1e-5)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_what_a_fit_has_learnt(tiny: Any) -> None:
    bank = of(tiny, TWO, TaskArithmetic(rank_ratio=0.5))
    learnt = {f"directions/{C_FC}": torch.rand(2, bank.ranks[C_FC]), f"correction/{BIAS}": torch.rand(64)}
    adapted = replace(bank, coefficients=torch.rand_like(bank.coefficients), learnt=learnt)
    grown = add_task(adapted, "gamma", tiny.experts["gamma"]).bank
    assert torch.equal(grown.coefficients[:2], adapted.coefficients)
    torch.testing.assert_close(grown.coefficients[2], adapted.coefficients.mean(0))
    assert torch.equal(grown.directions[C_FC][:2], learnt[f"directions/{C_FC}"])
    torch.testing.assert_close(grown.directions[C_FC][2], learnt[f"directions/{C_FC}"].mean(0))
    assert torch.equal(grown.learnt[f"correction/{BIAS}"], learnt[f"correction/{BIAS}"])
    back = remove_task(grown, "gamma").bank
    merged = back.merge()
    for name, value in adapted.merge().items():
        torch.testing.assert_close(merged[name], value)
    cart = of(tiny, tiny.tasks, CART(rank_ratio=0.5, scaling=1.5))
    moved = replace(cart, coefficients=torch.rand_like(cart.coefficients))
    with pytest.raises(MergeError, match="--reset puts the coefficients back"):
        remove_task(moved, "alpha")
    assert (remove_task(moved, "alpha", reset=True).bank.coefficients == 1.5).all()


def test_refused(tiny: Any, tmp_path: Path) -> None:
    bank = of(tiny, TWO, TaskArithmetic())
    gamma = load_file(tiny.experts["gamma"])
    with pytest.raises(MergeError, match="TSVM makes the delta of each task from those of all"):
        add_task(of(tiny, TWO, TSVM()), "gamma", gamma)
    with pytest.raises(MergeError, match="IsoC has one delta for all tasks"):
        remove_task(of(tiny, TWO, IsoC()), "alpha")
    with pytest.raises(MergeError, match="AWD changes each task vector by all others"):
        add_task(of(tiny, TWO, TaskArithmetic(), transform=AWD()), "gamma", gamma)
    with pytest.raises(MergeError, match="has a task 'beta' already"):
        add_task(bank, "beta", gamma)
    with pytest.raises(MergeError, match=r"expert gamma has no weight ln_post\.bias, which the bank has: another"):
        add_task(bank, "gamma", {name: value for name, value in gamma.items() if name != "ln_post.bias"})
    with pytest.raises(MergeError, match=r"has a weight head\.weight, .* --exclude head\.weight"):
        add_task(bank, "gamma", gamma | {"head.weight": torch.ones(2, 2)})
    add_task(bank, "gamma", gamma | {"head.weight": torch.ones(2, 2)}, exclude=["head.*"])
    with pytest.raises(MergeError, match=r"c_fc.weight has shape \[65, 32\], in the bank \[64, 32\]"):
        add_task(bank, "gamma", gamma | {C_FC: torch.ones(65, 32)})
    with pytest.raises(MergeError, match=r"gamma: .* is torch.int32, in the bank torch.float32: save the expert"):
        add_task(bank, "gamma", {name: (100 * value).int() for name, value in gamma.items()})
    other = {name: torch.randn(value.shape) * value.std() for name, value in gamma.items()}
    with pytest.raises(MergeError, match="was fine-tuned from another base: the cosine"):
        add_task(bank, "gamma", other)
    with pytest.raises(MergeError, match="holds NaN"):
        add_task(bank, "gamma", gamma | {BIAS: torch.full((64,), torch.nan)})
    with pytest.raises(MergeError, match="no task 'gamma' in this bank"):
        remove_task(bank, "gamma")
    with pytest.raises(MergeError, match="beta is the bank's only task"):
        remove_task(remove_task(bank, "alpha").bank, "beta")
    for name in ("", "a/b", "a\\b", "..", "mixed", "a\n", " a"):
        with pytest.raises(MergeError, match="is no name of a task"):
            check_task_name(name)


def test_names(tiny: Any) -> None:
    for method in (TSVM(), CART(rank_ratio=0.5)):
        bank = of(tiny, tiny.tasks, method)
        renamed = rename_task(bank, "beta", "delta")
        assert renamed.tasks == ("alpha", "delta", "gamma")
        assert inputs_of(renamed) == ["alpha", "delta", "gamma"]
        own = renamed.expert("delta")
        for name, value in bank.expert("beta").items():
            assert torch.equal(own[name], value)
    with pytest.raises(MergeError, match="has a task 'gamma' already"):
        rename_task(bank, "beta", "gamma")
    with pytest.raises(MergeError, match="no task 'delta'"):
        rename_task(bank, "delta", "beta")


def test_the_commands(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of(tiny, TWO, TSVCompress()).save(tmp_path / "two")
    start = ["--bank", f"{tmp_path}/two", "--output", f"{tmp_path}/three"]
    assert main(["bank", "add", *start, "--task", "gamma", "--expert", tiny.experts["gamma"]]) == 0
    assert "gamma added: exact" in capsys.readouterr().out
    assert_same(TaskBank.load(tmp_path / "three"), of(tiny, tiny.tasks, TSVCompress()))
    start = ["--bank", f"{tmp_path}/three", "--output", f"{tmp_path}/less"]
    assert main(["bank", "remove", *start, "--task", "alpha"]) == 0
    assert main(["bank", "rename", *start, "--overwrite", "--task", "beta", "--to", "b"]) == 0
    assert json.loads((tmp_path / "less" / "bank.json").read_text())["tasks"] == ["alpha", "b", "gamma"]
    capsys.readouterr()
    for arguments, message in (
        (["add", *start, "--overwrite", "--task", "x", "--expert", f"{tmp_path}/none"], "no such file"),
        (["remove", *start, "--task", "x"], "exists: pass --overwrite"),
        (["rename", *start, "--overwrite", "--task", "beta", "--to", "../x"], "is no name of a task"),
        (["rename", *start, "--task", "beta"], "the following arguments are required: --to"),
        (
            ["remove", "--bank", f"{tmp_path}/less", "--output", f"{tmp_path}/less", "--overwrite", "--task", "b"],
            "is read, and would be replaced",
        ),
    ):
        assert main(["bank", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_compressed_banks(tiny: Any, tmp_path: Path) -> None:
    """Read as any bank; what they have lost stays lost, and the new task is whole."""
    whole = of(tiny, TWO, TaskArithmetic(rank_ratio=1.0))
    compress_bank(whole, tmp_path / "small", budget="2x")
    small = TaskBank.load(tmp_path / "small")
    grown = add_task(small, "gamma", tiny.experts["gamma"]).bank
    scratch, expert = of(tiny, tiny.tasks, TaskArithmetic()).expert("gamma"), grown.expert("gamma")
    for name, rank in grown.ranks.items():
        value = scratch[name].double().numpy() - small.origin[name].double().numpy()
        u, s, v = np.linalg.svd(value, full_matrices=False)
        cut = small.origin[name].double().numpy() + (u[:, :rank] * s[:rank]) @ v[:rank]
        np.testing.assert_allclose(expert[name].numpy(), cut, rtol=1e-3, atol=1e-4)
    others = small.expert("beta")
    for name, value in grown.expert("beta").items():
        torch.testing.assert_close(value, others[name], rtol=1e-5, atol=1e-5)
