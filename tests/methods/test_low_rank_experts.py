"""Experts whose task vectors lack rank, as LoRA's: directions that no expert has carry nothing."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_merge import CART, ESM, TSVM, IsoC, IsoCTS, MergeMethod, TaskBank, build_bank, merge_files
from lit_merge.checkpoints import open_checkpoint

NAME, RANK, TASKS = "model.layers.0.mlp.up_proj.weight", 4, 3
Experts = dict[str, dict[str, Tensor]]
SHAPES = [(48, 32), (400, 390)]
METHODS = [TSVM(), IsoC(), IsoCTS(), IsoCTS(common_ratio=0.0), ESM()]


def make(shape: tuple[int, int], shared: str, size: float) -> tuple[Experts, dict[str, Tensor]]:
    """Experts that are a base and rank-4 updates of this size, in float32; `A` or `B` is one for all."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    base, a, b = draw(*shape) * 0.05, draw(RANK, shape[1]), draw(shape[0], RANK)
    updates = [
        (b if shared == "B" else draw(shape[0], RANK)) @ (a if shared == "A" else draw(RANK, shape[1]))
        for _ in range(TASKS)
    ]
    return {f"t{i}": {NAME: base + size * one} for i, one in enumerate(updates)}, {NAME: base}


def vectors_of(experts: Experts, base: dict[str, Tensor]) -> list[np.ndarray]:
    """What low rank leaves of the task vectors, in float64: no rounding of the stored sums."""
    found = []
    for expert in experts.values():
        u, s, vh = np.linalg.svd((expert[NAME].double() - base[NAME].double()).numpy(), full_matrices=False)
        found.append((u[:, :RANK] * s[:RANK]) @ vh[:RANK])
    return found


def span(matrices: list[np.ndarray]) -> np.ndarray:
    """An orthonormal basis of the columns of all."""
    u, s, _ = np.linalg.svd(np.concatenate(matrices, 1), full_matrices=False)
    return u[:, s > 1e-3 * s[0]]


@cache
def spans(shape: tuple[int, int], shared: str, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of the outputs and of the inputs that any expert changes."""
    vectors = vectors_of(*make(shape, shared, size))
    return span(vectors), span([one.T for one in vectors])


def change(bank: TaskBank, base: dict[str, Tensor]) -> np.ndarray:
    return (bank.merge(dtype=torch.float64)[NAME] - base[NAME]).numpy()


@pytest.mark.filterwarnings("ignore:ESM. .* have no second moments")
# Small updates are the harder ones: most of what is stored of them is rounding.
@pytest.mark.parametrize(("shared", "size"), [("none", 0.02), ("none", 1e-4), ("A", 1e-4), ("B", 1e-4)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_nothing_lies_where_no_expert_changed(
    method: MergeMethod, shape: tuple[int, int], shared: str, size: float, tmp_path: Path
) -> None:
    experts, base = make(shape, shared, size)
    found = change(build_bank(experts, base, method=method), base)
    turned = change(build_bank(dict(reversed(experts.items())), base, method=method), base)
    assert np.linalg.norm(found - turned) < 1e-4 * np.linalg.norm(found)
    left, right = spans(shape, shared, size)
    inside = left.T @ found
    # What ESM weighs are inputs, which mixes rows: outputs stay where they are.
    inside = inside if isinstance(method, ESM) else inside @ right
    assert np.linalg.norm(inside) > (1 - 1e-4) * np.linalg.norm(found)
    merge_files(experts, tmp_path / "merged.safetensors", base, method=method)
    merged = open_checkpoint(tmp_path / "merged.safetensors").read(NAME).double().numpy() - base[NAME].double().numpy()
    # Written in float32, in which large weights round small changes.
    assert np.linalg.norm(merged - found) < 1e-4 * np.linalg.norm(found) + 1e-6 * base[NAME].norm().item()


@pytest.mark.parametrize("shape", SHAPES)
def test_isotropic_merges_keep_the_sum_of_the_singular_values(shape: tuple[int, int]) -> None:
    experts, base = make(shape, "none", 0.02)
    u, s, vh = np.linalg.svd(sum(vectors_of(experts, base)))
    rank = RANK * TASKS
    expected = s[:rank].mean() * u[:, :rank] @ vh[:rank]
    bank = build_bank(experts, base, method=IsoC())
    assert bank.ranks[NAME] == rank
    np.testing.assert_allclose(change(bank, base), expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_are_whitened_in_their_own_span(shape: tuple[int, int]) -> None:
    experts, base = make(shape, "none", 0.02)
    parts = [np.linalg.svd(one) for one in vectors_of(experts, base)]
    polar = []
    for side in ([u[:, :RANK] for u, _, _ in parts], [vh[:RANK].T for _, _, vh in parts]):
        a, _, b = np.linalg.svd(np.concatenate(side, 1), full_matrices=False)
        polar.append(a @ b)
    expected = (polar[0] * np.concatenate([s[:RANK] for _, s, _ in parts])) @ polar[1].T
    bank = build_bank(experts, base, method=TSVM())
    assert bank.ranks[NAME] == RANK
    np.testing.assert_allclose(change(bank, base), expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("svd", ["auto", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_task_of_a_bank_is_its_expert(svd: str, dtype: torch.dtype) -> None:
    experts, base = make(SHAPES[1], "none", 0.02)
    experts = {task: {NAME: expert[NAME].to(dtype)} for task, expert in experts.items()}
    # In float32 all directions there are: task t is expert t. In bfloat16 rounding has as many as the matrix.
    ratio = 0.1 if dtype == torch.float32 else 1.0
    bank = build_bank(experts, method=CART(rank_ratio=ratio, scaling=1.0), dtype=torch.float32, svd=svd)
    for task, expert in experts.items():
        found, wanted = (x.double() for x in (bank.expert(task, torch.float32)[NAME], expert[NAME]))
        assert (found - wanted).norm() < 2e-3 * (wanted - base[NAME].double()).norm()
