"""Compressed banks: their size to the byte, what they keep, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import CART, IsoC, MergeError, TaskArithmetic, TaskBank, build_bank
from lit_merge.checkpoints import SafetensorsFile
from lit_merge.checkpoints.input_file import InputFile
from lit_merge.merge.compressed_bank import Compressed, compress_bank

FIRST, MATRIX, TABLE = "blocks.0.first.weight", "blocks.0.mlp.weight", "embed.weight"
SHAPES = {FIRST: (9, 7), MATRIX: (24, 16), TABLE: (30, 6), "conv.weight": (8, 3, 2, 2), "norm.bias": (16,), "scale": ()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three experts of it, in files."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    integers = {"steps": torch.arange(3)}
    save_file(base | integers, folder / "base.safetensors")
    for task in ("a", "b", "c"):
        spectrum = {
            name: 0.1 * torch.randn(shape) * torch.linspace(2, 0, shape[-1] if shape else 1)
            for name, shape in SHAPES.items()
        }
        moved = {name: base[name] + (value if base[name].dim() else value[0]) for name, value in spectrum.items()}
        save_file(moved | integers, folder / f"{task}.safetensors")
    return folder


@pytest.fixture(scope="module")
def bank(place: Path) -> TaskBank:
    experts = {task: str(place / f"{task}.safetensors") for task in ("a", "b", "c")}
    return build_bank(experts, method=CART(rank_ratio=1.0, scaling=1.5))


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def error(bank: TaskBank, other: TaskBank) -> float:
    """Squared, over all tasks and weights."""
    total = 0.0
    for task in bank.tasks:
        ours, theirs = bank.expert(task), other.expert(task)
        total += sum(float((theirs[n].double() - ours[n].double()).square().sum()) for n in ours)
    return total


def said(found: Compressed) -> float:
    return sum(left for left, _ in (*found.choice.left.values(), *found.choice.origin.values()))


@pytest.mark.parametrize(
    ("dtype", "origin"),
    [(None, "own"), (None, "base"), ("int8", "own"), ("int4", "base"), ("float16", "own"), ("float32", "base")],
)
def test_size_to_the_byte_and_error(origin: Any, dtype: Any, bank: TaskBank, place: Path, tmp_path: Path) -> None:
    base = place / "base.safetensors"
    for i, limit in enumerate((12_500, None)):
        options: Any = {"dtype": dtype, "origin": origin, "base": base, "max_size": limit and f"{limit}"}
        planned = compress_bank(bank, None, **options)
        done = compress_bank(bank, tmp_path / str(i), **options)
        assert planned.nbytes == done.nbytes == size(tmp_path / str(i)) <= (limit or np.inf)
        loaded = TaskBank.load(tmp_path / str(i))
        assert loaded.tasks == bank.tasks
        assert torch.equal(loaded.coefficients, bank.coefficients)
        # What is said is measured on some directions; rounding of several types adds to it.
        assert error(bank, loaded) == pytest.approx(said(done), rel=0.15, abs=1e-9)
        assert torch.equal(loaded.origin["steps"], bank.origin["steps"])
    # Without a limit, nothing but the types costs anything.
    most = {None: 2e-5, "int8": 0.08, "int4": 0.6, "float16": 2e-4, "float32": 1e-9}
    assert error(bank, loaded) < most[dtype]


def test_a_budget_goes_where_it_removes_most(bank: TaskBank, tmp_path: Path) -> None:
    """Less error than any cut to one share for all weights, in no more bytes."""
    for ratio in (0.25,):
        cut = bank.truncate(ratio)
        whole = compress_bank(cut, tmp_path / f"cut{ratio}", dtype="float16")
        spent = compress_bank(bank, tmp_path / f"spent{ratio}", dtype="float16", max_size=f"{whole.nbytes}")
        assert spent.nbytes <= whole.nbytes
        uniform, ours = (error(bank, TaskBank.load(tmp_path / f"{name}{ratio}")) for name in ("cut", "spent"))
        assert ours < 0.8 * uniform
        compress_bank(bank, tmp_path / f"free{ratio}", max_size=f"{whole.nbytes}")
        assert error(bank, TaskBank.load(tmp_path / f"free{ratio}")) < 0.5 * ours


def test_one_task_reads_its_own_slices(bank: TaskBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress_bank(bank, tmp_path / "bank", dtype="int8")
    loaded, values = TaskBank.load(tmp_path / "bank"), InputFile.read_into
    sizes: list[int] = []

    def note(*args: Any) -> None:
        if MATRIX in args[3]:
            sizes.append(args[2].nbytes)

    monkeypatch.setattr(InputFile, "read_into", lambda *args: (note(*args), values(*args))[1])
    found = loaded.expert("b")
    k = bank.ranks[MATRIX]
    assert sorted(sizes) == sorted([24 * 16, 2 * 24, 4 * k, 24 * k, 16 * k])
    in_memory = loaded.in_memory().expert("b")
    assert all(torch.equal(value, in_memory[name]) for name, value in found.items())
    cut = loaded.truncate(0.25)
    assert cut.ranks[MATRIX] == 4
    assert cut.expert("b")[MATRIX].shape == SHAPES[MATRIX]


def test_what_else_a_bank_holds(bank: TaskBank, place: Path, tmp_path: Path) -> None:
    """Learnt coefficients of directions, whose signs and sizes count, a correction, and a delta that tasks share."""
    values = torch.linspace(-2, 2, 3 * bank.ranks[MATRIX]).view(3, -1)
    learnt = {f"directions/{MATRIX}": values, "correction/norm.bias": torch.ones(16)}
    adapted = replace(bank, learnt=learnt)
    compress_bank(adapted, tmp_path / "adapted", dtype="float32")
    loaded = TaskBank.load(tmp_path / "adapted")
    merged = adapted.merge()
    for name, value in loaded.merge().items():
        torch.testing.assert_close(value, merged[name], rtol=1e-4, atol=1e-4)
    # What contributes most is kept, |λ|·s.
    compress_bank(adapted, tmp_path / "small", dtype="float32", max_size=f"{size(tmp_path / 'adapted') - 3500}")
    small = TaskBank.load(tmp_path / "small")
    kept, one = small.ranks[MATRIX], bank.low_rank(MATRIX)
    assert 0 < kept < bank.ranks[MATRIX]
    weight = (one.S * values.abs()).sort(dim=-1, descending=True).values
    contributions = (small.low_rank(MATRIX).S * small.directions[MATRIX].abs()).sort(dim=-1, descending=True).values
    torch.testing.assert_close(contributions[0, :1], weight[0, :1], rtol=1e-4, atol=1e-4)
    experts = {task: str(place / f"{task}.safetensors") for task in ("a", "b", "c")}
    shared = build_bank(experts, str(place / "base.safetensors"), method=IsoC(matrices="all"))
    compress_bank(shared, tmp_path / "shared", dtype="float32", origin="base", base=place / "base.safetensors")
    merged = shared.merge()
    for name, value in TaskBank.load(tmp_path / "shared").merge().items():
        torch.testing.assert_close(value, merged[name], rtol=1e-4, atol=1e-4)
    dense = build_bank(experts, str(place / "base.safetensors"), method=TaskArithmetic())
    compress_bank(dense, tmp_path / "dense", dtype="float32", origin="base", base=place / "base.safetensors")
    assert not any(name.startswith("origin/conv") for name in load_file(tmp_path / "dense" / "bank.safetensors"))
    assert error(dense, TaskBank.load(tmp_path / "dense")) < 1e-8


def test_a_base_by_reference_is_found_and_checked(bank: TaskBank, place: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    shutil.copyfile(place / "base.safetensors", base)
    compress_bank(bank, tmp_path / "bank", origin="base", base=base, max_size="14kB")
    before = TaskBank.load(tmp_path / "bank").expert("a")
    base.rename(tmp_path / "moved.safetensors")
    with pytest.raises(
        MergeError, match=r"bank is stored as a difference from .*base\.safetensors, which cannot be opened"
    ) as no:
        TaskBank.load(tmp_path / "bank")
    assert "--model.base" in str(no.value)
    found = TaskBank.load(tmp_path / "bank", base=tmp_path / "moved.safetensors").expert("a")
    assert all(torch.equal(value, before[name]) for name, value in found.items())
    shutil.copyfile(place / "base.safetensors", tmp_path / "bank" / "base.safetensors")
    assert torch.equal(TaskBank.load(tmp_path / "bank").expert("a")[MATRIX], before[MATRIX])  # beside the bank
    (tmp_path / "bank" / "base.safetensors").unlink()
    tensors = load_file(tmp_path / "moved.safetensors")
    other = tensors | {MATRIX: tensors[MATRIX].clone()}
    other[MATRIX][3, 3] += 1e-3
    save_file(other, base)
    with pytest.raises(MergeError, match=rf"base.safetensors is not the base that .*: {MATRIX}: its values are others"):
        TaskBank.load(tmp_path / "bank").expert("a")
    save_file({name: value for name, value in tensors.items() if name != MATRIX}, base)
    with pytest.raises(MergeError, match=rf"is not the base that .*: {MATRIX}: it has no such weight"):
        TaskBank.load(tmp_path / "bank")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": "3kB"}, r"a budget of 3,000 bytes is below the [\d,]+ that the bank needs without any delta"),
        ({"max_size": "1kB", "origin": "base"}, "a budget of 1,000 bytes is below"),
        ({"budget": "much"}, "budget='much': expected a multiple of one model's bytes, as 1.5x"),
        ({"budget": "0x"}, "expected a multiple"),
        ({"max_size": "big"}, "max_size is 'big', expected a size such as 5GB"),
        ({"max_size": "1MB", "budget": "2x"}, "give one of them"),
        ({"origin": "base", "base": None}, "origin=base needs the base"),
        ({"origin": "base", "base": "nowhere.safetensors"}, "nowhere.safetensors: no such file"),
        ({"dtype": "float64", "budget": "2x"}, "dtype=float64: a bank of limited size takes float32"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str, bank: TaskBank, place: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=message) as refused:
        compress_bank(bank, tmp_path / "bank", **{"base": place / "base.safetensors"} | options)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "bank").exists()


def test_a_base_of_another_model(bank: TaskBank, tmp_path: Path) -> None:
    save_file({name: torch.ones(2) for name in (*SHAPES, "steps")}, tmp_path / "base.safetensors")
    with pytest.raises(
        MergeError, match=r"cannot be the base of this bank: .* has shape .* in the bank, shape \[2\] in it"
    ):
        compress_bank(bank, None, origin="base", base=tmp_path / "base.safetensors", dtype="int8")


@pytest.mark.parametrize("kind", ["U/int8", "V/int8", "S", "origin", "scale"])
def test_a_damaged_part_is_seen_when_it_is_read(kind: str, bank: TaskBank, tmp_path: Path) -> None:
    compress_bank(bank, tmp_path / "bank", dtype="int8")
    path = tmp_path / "bank" / "bank.safetensors"
    metadata, tensors = SafetensorsFile(path).metadata, load_file(path)
    tensors[f"{kind}/{MATRIX}"].view(-1)[-1:].view(torch.uint8)[0] ^= 1
    save_file(tensors, path, metadata)
    loaded = TaskBank.load(tmp_path / "bank")
    with pytest.raises(MergeError, match=f"{MATRIX} is not as it was saved: its checksum is another one"):
        loaded.expert("c")
    if kind not in ("origin", "scale"):
        loaded.expert("a")  # whose share is whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about["packed"][MATRIX].update(int8="1 2"), "none of format version 3"),
        (lambda about: about["packed"][MATRIX].update(int8="many of them"), "none of format version 3"),
        (lambda about: about["packed"][MATRIX].update(int9="1 2 3"), "none of format version 3"),
        (lambda about: about["packed"][MATRIX].update(origin="int9"), "none of format version 3"),
        (lambda about: about["packed"][MATRIX].update(int8="16 16 15"), r"expected torch.float32 of \[47\]"),
        (lambda about: about["packed"].pop(MATRIX), "not of its weights"),
        (lambda about: about.update(packed=[]), "none of format version 3"),
        (lambda about: about["packed"][MATRIX].update(origin="base"), "not of its weights"),
        (lambda about: about.update(tasks=["a", "b"]), "ranks of 3 tasks, of 2"),
        (lambda about: about.update(format_version=4), "format version 4; this lit_merge reads up to 3"),
    ],
)
def test_descriptions_that_are_none(
    change: Callable[[dict[str, Any]], None], message: str, bank: TaskBank, tmp_path: Path
) -> None:
    compress_bank(bank, tmp_path / "bank", dtype="int8")
    path = tmp_path / "bank" / "bank.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    with pytest.raises(MergeError, match=message) as refused:
        TaskBank.load(tmp_path / "bank")
    assert "\n" not in str(refused.value)


def test_a_base_in_integers(bank: TaskBank, place: Path, tmp_path: Path) -> None:
    whole = {name: (3 * value).to(torch.int32) for name, value in load_file(place / "base.safetensors").items()}
    save_file(whole, tmp_path / "base.safetensors")
    compress_bank(bank, tmp_path / "bank", dtype="float32", origin="base", base=tmp_path / "base.safetensors")
    found = TaskBank.load(tmp_path / "bank").expert("b")
    for name, value in bank.expert("b").items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_weights_without_a_value_and_in_integers(tmp_path: Path) -> None:
    experts = {
        task: {MATRIX: torch.randn(6, 5), "none": torch.zeros(0, 3), "mask": torch.tensor([True, False])}
        for task in ("a", "b", "c")
    }
    bank = build_bank(experts, method=CART(rank_ratio=1.0))
    compress_bank(bank, tmp_path / "bank", dtype="float32")
    found = TaskBank.load(tmp_path / "bank").expert("b")
    for name, value in bank.expert("b").items():
        torch.testing.assert_close(found[name], value)
    integers = {task: one | {"codes": torch.ones(2, dtype=torch.int8)} for task, one in experts.items()}
    with pytest.raises(MergeError, match="codes is int8, which a compressed bank has for scaled numbers only"):
        compress_bank(build_bank(integers, method=CART(rank_ratio=1.0)), None, dtype="int8")


def features(bank: TaskBank) -> dict[str, dict[str, torch.Tensor]]:
    """Second moments of inputs that lie mostly in a few directions, others for every task."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for i, task in enumerate(bank.tasks):
        torch.manual_seed(10 + i)
        found[task] = {}
        for name in (FIRST, MATRIX):
            x = torch.randn(200, SHAPES[name][1]) * torch.linspace(3, 0.1, SHAPES[name][1]).square()
            turned = x @ torch.linalg.qr(torch.randn(SHAPES[name][1], SHAPES[name][1]))[0]
            found[task][name] = turned.T @ turned / len(turned)
    return found


def feature_error(bank: TaskBank, other: TaskBank, moments: dict[str, dict[str, torch.Tensor]]) -> float:
    """E‖(W − W')x‖² over tasks and weights; of weights without moments the squared Frobenius norm. In numpy."""
    total = 0.0
    for task in bank.tasks:
        ours, theirs = bank.expert(task), other.expert(task)
        for name, value in ours.items():
            D = (theirs[name].double() - value.double()).numpy()
            if name in moments[task]:
                C = moments[task][name].double().numpy()
                total += np.trace(D @ (C + 1e-3 * np.trace(C) / len(C) * np.eye(len(C))) @ D.T)
            else:
                total += float(np.square(D).sum())
    return total


@pytest.mark.parametrize("origin", ["own", "base"])
def test_errors_on_features(origin: Any, bank: TaskBank, place: Path, tmp_path: Path) -> None:
    """What is said is the error that there is, what is left the least, and without a limit nothing is lost."""
    moments = features(bank)
    options: Any = {"dtype": "float32", "origin": origin, "base": place / "base.safetensors"}
    compress_bank(bank, tmp_path / "all", moments=moments, **options)
    assert error(bank, TaskBank.load(tmp_path / "all")) < 1e-9
    limited = {"max_size": "16000"} | options
    done = compress_bank(bank, tmp_path / "features", moments=moments, **limited)
    compress_bank(bank, tmp_path / "plain", **limited)
    ours, plain = (feature_error(bank, TaskBank.load(tmp_path / name), moments) for name in ("features", "plain"))
    # What the origin's difference lacks and what a delta lacks are not orthogonal to each other.
    assert ours == pytest.approx(said(done), rel=1e-3 if origin == "own" else 0.02)
    assert ours < 0.8 * plain
    assert error(bank, TaskBank.load(tmp_path / "features")) > error(bank, TaskBank.load(tmp_path / "plain"))
    wrong = {task: {FIRST: torch.eye(3)} for task in bank.tasks}
    with pytest.raises(MergeError, match=r"second moments of shape \[3, 3\], expected \[7, 7\] of 7 inputs"):
        compress_bank(bank, None, moments=wrong, max_size="16000")


def test_learnt_directions_stay_what_they_are(bank: TaskBank, tmp_path: Path) -> None:
    """Each has a coefficient of its own, which the features only weigh."""
    torch.manual_seed(5)
    learnt = replace(bank, learnt={f"directions/{MATRIX}": 1 + torch.rand(3, bank.ranks[MATRIX])})
    compress_bank(learnt, tmp_path / "bank", dtype="float32", moments=features(bank))
    stored = TaskBank.load(tmp_path / "bank")
    assert error(learnt, stored) < 1e-9
    for name, value in learnt.merge().items():
        torch.testing.assert_close(stored.merge()[name], value, rtol=0, atol=1e-5)


def test_features_where_nothing_differs_but_the_base(bank: TaskBank, place: Path, tmp_path: Path) -> None:
    """A weight without deltas is the base and one difference, in all tasks' models."""
    kept = {name: delta for name, delta in bank.deltas.items() if name != MATRIX}
    places = [bank.layers.index(name) for name in kept]
    less = replace(bank, deltas=kept, coefficients=bank.coefficients[:, places])
    options: Any = {"dtype": "float32", "origin": "base", "base": place / "base.safetensors"}
    moments = features(bank)
    compress_bank(less, tmp_path / "all", moments=moments, **options)
    assert error(less, TaskBank.load(tmp_path / "all")) < 1e-9
    done = compress_bank(less, tmp_path / "cut", moments=moments, max_size="14000", **options)
    ours = feature_error(less, TaskBank.load(tmp_path / "cut"), moments)
    assert ours == pytest.approx(said(done), rel=0.02)
