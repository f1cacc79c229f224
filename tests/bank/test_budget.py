"""The best steps first, against every other choice of small banks."""

import itertools

import numpy as np
import pytest

from lit_merge.bank.budget import Parts, Steps, best_first, within

KINDS = {
    # Directions of two tasks, a vector, and an origin, which is stored at any rate.
    "matrix": Parts(np.array([[9.0, 4.0], [5.0, 0.5]]), {"int8": 0.999, "int4": 0.96}, {"int8": 28, "int4": 16}),
    "vector": Parts(np.array([[2.0], [0.1]]), {"int8": 0.9999, "int4": 0.7}, {"int8": 12, "int4": 8}),
    "origin": Parts(np.array([900.0]), {"float16": 1 - 1e-7, "int8": 0.9999}, {"float16": 40, "int8": 24}, needed=True),
}


def measure(levels: dict[str, np.ndarray]) -> tuple[int, float]:
    """Bytes and error of a choice: positions in each kind's ladder, 0 for what is not stored."""
    nbytes, error = 0, 0.0
    for name, part in KINDS.items():
        for energy, level in zip(part.energies.ravel(), levels[name].ravel(), strict=True):
            kind = part.ladder[level - 1] if level else None
            nbytes += part.nbytes[kind] if kind else 0
            error += energy * (1 - part.kept[kind]) if kind else energy
    return nbytes, error


@pytest.fixture(scope="module")
def every() -> list[tuple[int, float]]:
    """Bytes and error of every choice there is, of any types."""
    options = []
    for part in KINDS.values():
        for energy in part.energies.ravel():
            stored = [(part.nbytes[kind], energy * (1 - part.kept[kind])) for kind in part.kept]
            options.append(stored if part.needed else [(0, energy), *stored])
    return [(sum(n for n, _ in one), sum(e for _, e in one)) for one in itertools.product(*options)]


def test_after_every_step_no_other_choice_of_that_size_leaves_less(every: list[tuple[int, float]]) -> None:
    steps = best_first(KINDS)
    found = [measure(steps.after(count)) for count in range(1, len(steps) + 1)]
    assert found == sorted(found, key=lambda one: (one[0], -one[1]))
    for nbytes, error in found:
        assert error <= min(e for n, e in every if n <= nbytes) + 1e-9
    assert found[-1][1] == pytest.approx(min(e for _, e in every))
    assert steps.after(1)["origin"].tolist() == [1]


def test_any_budget_is_kept_and_used(every: list[tuple[int, float]]) -> None:
    largest = 40

    def nbytes(steps: Steps, count: int) -> int:
        return measure(steps.after(count))[0]

    for budget in range(24, 260, 7):
        steps, count = within(best_first(KINDS), nbytes, budget, 1)
        taken, error = measure(steps.after(count))
        assert taken <= budget
        # One step may not fit: the best of a budget smaller by it is reached at least.
        assert error <= min((e for n, e in every if n <= budget - largest), default=np.inf) + 1e-9
        # What is passed over is too large for what is left.
        assert count == len(steps) or nbytes(steps, count + 1) > budget


def test_a_type_that_does_not_pay_is_left_out() -> None:
    poor = Parts(np.array([1.0]), {"int8": 0.99, "int4": 0.3}, {"int8": 10, "int4": 8})
    assert poor.ladder == ["int8"]
    worse = Parts(np.array([1.0]), {"float16": 0.9, "int8": 0.99}, {"float16": 20, "int8": 10})
    assert worse.ladder == ["int8"]
    assert KINDS["matrix"].ladder == ["int4", "int8"]
