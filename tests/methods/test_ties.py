"""TIES against the whole vectors of all tasks (METHODS: arXiv 2306.01708)."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lit_merge import TIES, Experts, MergeError, build_bank
from lit_merge.bank.kth_largest import kth_largest
from lit_merge.experts.stream import WeightStream
from lit_merge.methods.ties import ties, trim

State = dict[str, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore:the expert.* (are identical|is the base)")
SHAPES = {"a.weight": (4, 3), "b.bias": (5,), "scale": (), "conv.weight": (2, 2, 1, 2)}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())


def literal(tau: Tensor, k: int, merge: str) -> Tensor:
    """What every task adds (T, P), from whole task vectors, entry by entry."""
    tasks, size = tau.shape
    trimmed = [[0.0] * size for _ in range(tasks)]
    for t in range(tasks):
        threshold = sorted((abs(x) for x in tau[t].tolist()), reverse=True)[k - 1]
        for p, x in enumerate(tau[t].tolist()):
            if abs(x) >= threshold:
                trimmed[t][p] = x
    sums = [math.fsum(one[p] for one in trimmed) for p in range(size)]
    signs = [(x > 0) - (x < 0) for x in sums]
    majority = 1 if sum(signs) > 0 else -1
    out = torch.zeros(tasks, size, dtype=torch.float64)
    for p in range(size):
        agreeing = [t for t in range(tasks) if trimmed[t][p] * (signs[p] or majority) > 0]
        for t in agreeing:
            out[t, p] = trimmed[t][p] / (len(agreeing) if merge == "mean" else 1)
    return out


def split(vector: Tensor) -> State:
    parts = vector.split([math.prod(shape) for shape in SHAPES.values()])
    return {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}


def make(tau: Tensor) -> tuple[dict[str, State], State]:
    """Experts with these task vectors (T, P), exactly: the base is zero."""
    base = split(torch.zeros_like(tau[0])) | {"steps": torch.tensor(7)}
    return {f"task{t}": split(one) | {"steps": torch.tensor(7)} for t, one in enumerate(tau)}, base


def check(tau: Tensor, method: TIES) -> None:
    experts, base = make(tau)
    bank = build_bank(experts, base, method=method, dtype=torch.float64)
    k = math.floor(method.keep * SIZE)
    added = literal(tau.double(), k, method.merge)
    merged = bank.merge(dtype=torch.float64)
    for name, wanted in split(method.scaling * added.sum(0)).items():
        torch.testing.assert_close(merged[name], wanted, rtol=1e-6, atol=1e-9)
    for t, task in enumerate(bank.tasks):
        for name, wanted in split(added[t]).items():
            torch.testing.assert_close(bank.expert(task, torch.float64)[name], wanted, rtol=1e-6, atol=1e-9)
    assert torch.equal(bank.merge()["steps"], base["steps"])


# Few different values: equal ones at the threshold, zeros, and tasks that cancel.
@given(
    st.integers(1, 5).flatmap(
        lambda t: st.lists(st.lists(st.integers(-3, 3), min_size=SIZE, max_size=SIZE), min_size=t, max_size=t)
    ),
    st.sampled_from([0.04, 0.1, 0.2, 0.5, 0.75, 1.0]),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
@settings(max_examples=30, deadline=None)
def test_equal_values_and_zeros(rows: list[list[int]], keep: float, merge: str, dtype: torch.dtype) -> None:
    check(torch.tensor(rows, dtype=dtype), TIES(keep=keep, merge=merge))


@given(st.integers(1, 6), st.floats(0.04, 1), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_random_values(tasks: int, keep: float, dtype: torch.dtype, seed: int) -> None:
    tau = torch.randn(tasks, SIZE, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    check(tau, TIES(keep=keep, scaling=0.4))


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.data(),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_kth_largest_is_exact(values: list[float], data: st.DataObject, dtype: torch.dtype) -> None:
    """Subnormal, huge and negative numbers, −0, and those that differ in the last bit."""
    vector = torch.tensor(values, dtype=dtype)
    rows = torch.stack([vector, torch.nextafter(vector, torch.zeros(())), vector.flip(0) / 3])
    k = data.draw(st.integers(1, len(values)))
    cut = data.draw(st.integers(0, len(values)))
    read = lambda: iter([rows[:, :cut], rows[:, cut:]])  # noqa: E731
    wanted = rows.abs().sort(dim=1, descending=True).values[:, k - 1]
    assert torch.equal(kth_largest(read, k, 3, dtype), wanted)


def test_kth_largest_in_float64_sees_the_last_bits() -> None:
    row = 1 + torch.arange(50, dtype=torch.float64) * torch.finfo(torch.float64).eps
    for k in (1, 7, 50):
        assert kth_largest(lambda: [row[None]], k, 1, torch.float64).item() == row[50 - k].item()


def test_one_float64_weight_among_others() -> None:
    tau = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0)).double()
    experts, base = make(tau)
    mixed = {t: {n: w.float() if n == "a.weight" else w for n, w in e.items()} for t, e in experts.items()}
    merged = build_bank(mixed, base | {"a.weight": base["a.weight"].float()}, method=TIES()).merge()
    for name, wanted in split(literal(tau, int(0.2 * SIZE), "mean").sum(0)).items():
        torch.testing.assert_close(merged[name].double(), wanted, rtol=1e-6, atol=1e-9)


def test_the_threshold_is_of_the_whole_vector() -> None:
    """One weight with all large entries, one with none: nothing of the second is kept."""
    experts = {f"task{t}": {"large": torch.full((4,), 5.0 + t), "small": torch.linspace(0.1, 1, 16)} for t in range(2)}
    base = {"large": torch.zeros(4), "small": torch.zeros(16)}
    merged = build_bank(experts, base, method=TIES(keep=0.2)).merge()
    assert torch.equal(merged["large"], torch.full((4,), 5.5))
    assert not merged["small"].any()


def test_weights_that_nobody_changed_count_and_integers_do_not() -> None:
    """P has the 6 frozen entries, not the 100 integers: 2 of 10 are kept, not 0 or 22."""
    experts = {
        f"task{t}": {"w": torch.tensor([1.0, 2.0, 3.0, 4.0]), "frozen": torch.ones(6), "index": torch.arange(100)}
        for t in range(2)
    }
    base = {"w": torch.zeros(4), "frozen": torch.ones(6), "index": torch.arange(100)}
    merged = build_bank(experts, base, method=TIES(keep=0.2)).merge()
    assert merged["w"].tolist() == [0, 0, 3, 4]
    assert torch.equal(merged["frozen"], base["frozen"])


def test_all_that_equal_the_threshold_are_kept() -> None:
    state = {"w": torch.tensor([2.0, -2.0, 2.0, 1.0, 3.0])}
    merged = build_bank({"one": state}, {"w": torch.zeros(5)}, method=TIES(keep=0.4)).merge()
    assert merged["w"].tolist() == [2, -2, 2, 0, 3]


@pytest.mark.parametrize(("others", "wins"), [([3.0, 1.0, -1.0], 1), ([-3.0, -1.0, 1.0], -1), ([1.0, -1.0, 0.0], -1)])
def test_tasks_that_cancel_take_the_sign_of_most_entries(others: list[float], wins: int) -> None:
    experts = {"up": {"w": torch.tensor([4.0, *others])}, "down": {"w": torch.tensor([-4.0, *others])}}
    merged = build_bank(experts, {"w": torch.zeros(4)}, method=TIES(keep=1.0)).merge()
    assert merged["w"].tolist() == [4.0 * wins, *others]


def test_merge_of_one_weight() -> None:
    vectors = torch.tensor([[3.0, 1.0, 0.5], [5.0, -4.0, 0.5], [-1.0, -2.0, 0.0]])
    trimmed = trim(vectors, torch.tensor([1.0, 4.0, 2.0]))
    assert trimmed.tolist() == [[3, 1, 0], [5, -4, 0], [0, -2, 0]]
    assert ties(trimmed).tolist() == [[1.5, 0, 0], [2.5, -2, 0], [0, -1, 0]]
    assert ties(trimmed, merge="sum").tolist() == [[3, 0, 0], [5, -4, 0], [0, -2, 0]]


def test_keep_is_a_decimal_number() -> None:
    state = {"w": torch.arange(1.0, 101.0)}
    merged = build_bank({"one": state}, {"w": torch.zeros(100)}, method=TIES(keep=0.29)).merge()
    assert merged["w"].count_nonzero() == 29


@pytest.mark.parametrize("keep", [0.0, -0.2, 1.01, math.nan])
def test_keep_outside_its_range(keep: float) -> None:
    with pytest.raises(MergeError, match=r"keep=.*(is outside \(0, 1\]|expected a finite number)"):
        TIES(keep=keep)


def test_nothing_kept_is_an_error() -> None:
    with pytest.raises(MergeError, match=r"keep=0\.2 keeps none of 4 entries"):
        build_bank({"one": {"w": torch.ones(4)}}, {"w": torch.zeros(4)}, method=TIES())


def test_it_cannot_run_before_it_has_looked() -> None:
    experts, base = make(torch.ones(2, SIZE))
    weight = next(iter(WeightStream(Experts(experts, base), with_base=True)))
    with pytest.raises(MergeError, match="looks at all weights first"):
        TIES().rest(weight)


def test_the_record_holds_hyper_parameters_only(tmp_path: Path) -> None:
    experts, base = make(torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0)))
    for task, state in experts.items():
        save_file(state, tmp_path / f"{task}.safetensors")
    bank = build_bank({t: tmp_path / f"{t}.safetensors" for t in experts}, base, method=TIES(merge="sum", scaling=0.3))
    assert bank.method == {"class_path": "TIES", "init_args": {"keep": 0.2, "merge": "sum", "scaling": 0.3}}
    assert (bank.coefficients == 0.3).all()
