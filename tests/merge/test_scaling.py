"""The self-consistent scale: closed form against a search, for every method with a scale."""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_merge import (
    AWD,
    CART,
    ESM,
    TIES,
    TSVM,
    ConsensusTA,
    IsoC,
    IsoCTS,
    MergeError,
    MergeMethod,
    MergeWarning,
    TaskArithmetic,
    TaskBank,
    WeightAveraging,
    build_bank,
)  # fmt: skip
from lit_merge.experts.matrices import select_matrices
from lit_merge.merge.scaling import at_scaling
from tests.methods.test_contract import make

METHODS: dict[str, MergeMethod] = {
    "arithmetic": TaskArithmetic(),
    "cart": CART(rank_ratio=0.25),
    "tsv": TSVM(),
    "iso": IsoC(),
    "iso_cts": IsoCTS(),
    "ties": TIES(),
    "consensus": ConsensusTA(),
    "esm": ESM(),
    "esm_official": ESM(preset="official"),
}
pytestmark = pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")


def contained(bank: TaskBank, method: MergeMethod, experts: Any, base: dict[str, Tensor]) -> float:
    """mean_t ⟨W − θ₀, τ_t⟩ / ‖τ_t‖², literally."""
    shapes = {name: tuple(value.shape) for name, value in bank.origin.items()}
    names = method.selected(shapes) or select_matrices(shapes, "all")
    merged = bank.merge()
    shares = []
    for state in experts.values():
        inner = sum(((merged[n] - base[n]) * (state[n] - base[n])).sum() for n in names)
        shares.append(inner / sum((state[n] - base[n]).square().sum() for n in names))
    return float(sum(shares) / len(shares))


def fine_tuned() -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Four experts whose matrices moved mostly along one direction of their own, as those of fine-tuning do."""
    experts, base = make(4)
    generator = torch.Generator().manual_seed(1)
    for state in experts.values():
        for name, value in state.items():
            if value.ndim == 2:
                left, right = (torch.randn(n, generator=generator, dtype=torch.float64) for n in value.shape)
                state[name] = base[name] + 0.1 * (value - base[name]) + torch.outer(left, right)
    return experts, base


@pytest.mark.parametrize("name", METHODS)
def test_the_merge_contains_every_task_vector_once(name: str) -> None:
    experts, base = fine_tuned()
    method = METHODS[name].at("self_consistent")
    bank = build_bank(experts, base, method=method)
    assert contained(bank, method, experts, base) == pytest.approx(1, abs=1e-6)
    assert bank.method["init_args"]["scaling"] == "self_consistent"  # type: ignore[index]
    chosen = bank.method["chosen"]["scaling"]  # type: ignore[index]
    given = build_bank(experts, base, method=METHODS[name].at(chosen))
    torch.testing.assert_close(given.coefficients, bank.coefficients, rtol=1e-5, atol=1e-6)


def test_after_a_transform_it_is_the_new_task_vectors_that_count() -> None:
    experts, base = make(3)
    bank = build_bank(experts, base, method=TaskArithmetic("self_consistent"), transform=AWD())
    plain = build_bank(experts, base, method=TaskArithmetic(1.0), transform=AWD())
    changed = {task: plain.expert(task) for task in plain.tasks}
    assert contained(bank, TaskArithmetic(), changed, base) == pytest.approx(1, abs=1e-6)


def test_needs_the_base_and_task_vectors() -> None:
    experts, base = make(3)
    with pytest.raises(MergeError, match="scaling=self_consistent needs the pretrained checkpoint"):
        build_bank(experts, method=CART(0.25, "self_consistent"))
    with pytest.raises(MergeError, match="task1 equal the base"):
        build_bank(experts | {"task1": dict(base)}, base, method=TSVM(scaling="self_consistent"))


def test_a_merge_without_any_task_vector_has_no_such_scale() -> None:
    # Flat spectra: what CART keeps of each expert is outweighed by what the others' means take away.
    experts, base = make(6)
    with pytest.raises(MergeError, match="contains none of the task vectors"):
        build_bank(experts, base, method=CART(0.25, "self_consistent"))


def test_a_scale_enters_only_where_the_method_says() -> None:
    experts, base = make(3)
    method = ESM(preset="official", scaling=0.5)
    bank = build_bank(experts, base, method=method)
    scaled = {name for name in bank.layers if method.start(name) == 0.5}
    assert scaled == {n for n in bank.layers if any(part in n for part in ("in_proj_weight", "c_fc.w", "c_proj.w"))}
    other = at_scaling(bank, method, 2.0)
    for i, name in enumerate(bank.layers):
        assert (other.coefficients[:, i] == (2.0 if name in scaled else 1.0)).all()


def test_methods_without_a_scale_are_left_alone() -> None:
    assert WeightAveraging().scale is None
    assert WeightAveraging().start("x") == 1.0
    assert (CART().usual_scale, TaskArithmetic(scaling="entropy").usual_scale) == (2.0, 0.3)
    assert replace(CART(), scaling=3.0) == CART().at(3.0)


def test_whole_task_vectors_are_a_reason_to_doubt() -> None:
    experts, base = fine_tuned()
    with pytest.warns(MergeWarning, match="overshoots where task vectors are added whole"):
        build_bank(experts, base, method=TaskArithmetic("self_consistent"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_bank(experts, base, method=IsoC("self_consistent"))
