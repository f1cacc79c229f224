"""What must hold of consensus task arithmetic (METHODS: arXiv 2405.07813)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_merge import ConsensusTA, MergeError, MergeWarning, TaskArithmetic, build_bank
from lit_merge.methods.consensus import consensus_mask

State = dict[str, Tensor]
SHAPES = {"a.weight": (5, 4), "b.bias": (7,), "scale": ()}
KAPPAS = {"task0": 0.2, "task1": 0.6, "task2": 0.3}


def make(tasks: int, seed: int = 0) -> tuple[dict[str, State], State]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}  # noqa: E731
    return {f"task{t}": draw() for t in range(tasks)}, draw()


def literal(tau: list[float], kappa: list[float], agree: int) -> list[float]:
    """What every task adds to one entry."""
    votes = sum(abs(one) >= k * abs(math.fsum(tau) - one) for one, k in zip(tau, kappa, strict=True))
    return [one if votes >= agree else 0.0 for one in tau]


@given(st.integers(2, 6), st.floats(0, 2), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_every_entry(tasks: int, kappa: float, agree: int, seed: int) -> None:
    experts, base = make(tasks, seed)
    method = ConsensusTA(kappa=kappa, agree=min(agree, tasks), scaling=0.7)
    bank = build_bank(experts, base, method=method)
    merged = bank.merge()
    for name in SHAPES:
        tau = torch.stack([expert[name] - base[name] for expert in experts.values()]).reshape(tasks, -1)
        entries = [literal(entry, [kappa] * tasks, method.agree) for entry in tau.T.tolist()]
        added = torch.tensor(entries, dtype=torch.float64).T
        torch.testing.assert_close(merged[name], base[name] + 0.7 * added.sum(0).view(SHAPES[name]))
        for task, one in zip(bank.tasks, added, strict=True):
            torch.testing.assert_close(bank.expert(task)[name], base[name] + one.view(SHAPES[name]))


def test_one_kappa_for_every_task_in_any_order() -> None:
    experts, base = make(3)
    merged = build_bank(experts, base, method=ConsensusTA(kappa=dict(reversed(KAPPAS.items())))).merge()
    other = build_bank(experts, base, method=ConsensusTA(kappa=0.3)).merge()
    for name in SHAPES:
        tau = torch.stack([expert[name] - base[name] for expert in experts.values()])
        votes = sum(
            (tau[t].abs() >= kappa * (tau.sum(0) - tau[t]).abs()).int() for t, kappa in enumerate(KAPPAS.values())
        )
        torch.testing.assert_close(merged[name], base[name] + 0.3 * (votes >= 2) * tau.sum(0))
    assert any(not torch.equal(merged[name], other[name]) for name in SHAPES)


def test_no_threshold_is_task_arithmetic() -> None:
    experts, base = make(3)
    merged = build_bank(experts, base, method=ConsensusTA(kappa=0.0, scaling=0.3)).merge()
    for name, value in build_bank(experts, base, method=TaskArithmetic(scaling=0.3)).merge().items():
        torch.testing.assert_close(merged[name], value)


def test_an_entry_of_one_task_only_is_dropped() -> None:
    vectors = torch.tensor([[5.0, 5.0, 0.0], [0.1, 4.0, 0.0], [0.0, 0.0, 0.0]])
    assert consensus_mask(vectors, [0.4] * 3, 2).tolist() == [False, True, True]


def test_a_task_without_kappa_and_a_kappa_without_task() -> None:
    experts, base = make(3)
    with pytest.raises(MergeError, match="no number for the task task2"):
        build_bank(experts, base, method=ConsensusTA(kappa={"task0": 0.4, "task1": 0.4}))
    with pytest.raises(MergeError, match="kappa names 'task9', which is no task of this merge: task0, task1, task2"):
        build_bank(experts, base, method=ConsensusTA(kappa=KAPPAS | {"task9": 0.4}))


def test_fewer_experts_than_must_agree() -> None:
    experts, base = make(1)
    with pytest.warns(MergeWarning, match="agree=2 keeps nothing of 1 experts"):
        merged = build_bank(experts, base, method=ConsensusTA()).merge()
    for name in SHAPES:
        assert torch.equal(merged[name], base[name])


@pytest.mark.parametrize("option", [{"kappa": -0.1}, {"kappa": math.nan}, {"kappa": {"one": math.inf}}, {"agree": 0}])
def test_options_outside_their_range(option: dict[str, object]) -> None:
    with pytest.raises(MergeError, match=rf"^(ConsensusTA: )?{next(iter(option))}(\.one)?="):
        ConsensusTA(**option)


def test_the_record_holds_what_was_given() -> None:
    experts, base = make(3)
    bank = build_bank(experts, base, method=ConsensusTA(kappa=KAPPAS))
    assert bank.method["init_args"] == {"kappa": KAPPAS, "scaling": 0.3, "agree": 2}
