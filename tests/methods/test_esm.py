"""What must hold of ESM (arXiv 2602.20208), and its preset `official` against the authors' steps written out."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor

from lit_merge import (
    ESM,
    Experts,
    LowRank,
    MergeError,
    MergeMethod,
    MergeWarning,
    build_bank,
    collect_moments,
    load_moments,
    save_moments,
)
from lit_merge.bank.essential_subspaces import essential_subspace
from lit_merge.bank.layer_level import layer_level
from lit_merge.methods.esm import esm

State = dict[str, Tensor]
BLOCK = "transformer.resblocks.{}.{}"
IN_BLOCK = {
    "attn.in_proj_weight": (36, 12),
    "attn.out_proj.weight": (12, 12),
    "mlp.c_fc.weight": (20, 12),
    "mlp.c_proj.weight": (12, 20),
    "mlp.c_fc.bias": (20,),
}
SHAPES = {
    "conv1.weight": (6, 3, 2, 2),
    "positional_embedding": (5, 12),
    "ln_pre.weight": (12,),
    **{BLOCK.format(i, name): shape for i in range(2) for name, shape in IN_BLOCK.items()},
    "proj": (12, 8),
}
TWO_D = [name for name, shape in SHAPES.items() if len(shape) == 2]
ESSENTIAL = [name for name in TWO_D if "in_proj" in name or "mlp" in name]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(tasks: int) -> tuple[dict[str, State], State]:
    base = {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    experts = {
        f"task{t}": {
            name: value + (0.2 + 0.1 * t + 0.03 * i) * draw(*value.shape, seed=1000 * (t + 1) + i)
            for i, (name, value) in enumerate(base.items())
        }
        for t in range(tasks)
    }
    return experts, base


def activations(task: int, name: str, rows: int = 9) -> Tensor:
    """X: fewer rows than outputs, so that in_proj has fewer essential directions (9) than k (12)."""
    return draw(rows, SHAPES[name][1], seed=77 + 1000 * task + TWO_D.index(name))


def moments(tasks: int, names: list[str] = TWO_D) -> dict[str, dict[str, Tensor]]:
    return {
        f"task{t}": {name: activations(t, name).T @ activations(t, name) / 9 for name in names} for t in range(tasks)
    }


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def dense(delta: LowRank) -> Tensor:
    return delta.to_dense().sum(0)


# The essential subspace


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_essential_subspace_of_explicit_activations(m: int, n: int, rows: int, rank: int, seed: int) -> None:
    delta, x = draw(m, n, seed=seed), draw(rows, n, seed=seed + 100)
    p, l = essential_subspace(delta, x.T @ x, rank)
    outputs = x @ delta.T
    s = torch.linalg.svdvals(outputs)
    kept = min(rank, m, n, rows)
    assert p.shape == (m, kept)
    close(p.T @ p, torch.eye(kept, dtype=torch.float64))
    torch.testing.assert_close(l, s[:kept].square(), rtol=1e-7, atol=1e-12)
    # Eigenvectors of the uncentred covariance of the output shift.
    torch.testing.assert_close((outputs.T @ outputs) @ p, p * l, rtol=1e-6, atol=1e-9)
    error = (outputs - x @ (p @ p.T @ delta).T).square().sum()
    torch.testing.assert_close(error, s[kept:].square().sum(), rtol=1e-6, atol=1e-9)


@given(st.floats(1e-6, 1e6), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_scaling_the_activations_changes_no_direction(factor: float, rank: int, seed: int) -> None:
    delta, x = draw(5, 7, seed=seed), draw(6, 7, seed=seed + 100)
    p, l = essential_subspace(delta, x.T @ x, rank)
    scaled, l_scaled = essential_subspace(delta, factor**2 * (x.T @ x), rank)
    torch.testing.assert_close(scaled, p, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(l_scaled, factor**2 * l, rtol=1e-7, atol=0)


def test_no_moments_are_the_identity_and_give_the_svd() -> None:
    delta = draw(6, 4, seed=0)
    u, s, _ = torch.linalg.svd(delta, full_matrices=False)
    for moment in (None, torch.eye(4, dtype=torch.float64), 5 * torch.eye(4, dtype=torch.float64)):
        p, _ = essential_subspace(delta, moment, 3)
        close(p @ p.T, u[:, :3] @ u[:, :3].T)
    close(essential_subspace(delta, None, 3)[1], s[:3].square())


def test_directions_that_rounding_makes_do_not_count() -> None:
    column, row = draw(6, 1, seed=0), draw(1, 5, seed=1)
    assert essential_subspace(column @ row, None, 4)[0].shape == (6, 1)
    x = draw(2, 5, seed=2)
    assert essential_subspace(draw(6, 5, seed=3), x.T @ x, 4)[0].shape == (6, 2)
    for delta, moment in ((torch.zeros(6, 5), torch.eye(5)), (draw(6, 5, seed=3), torch.zeros(5, 5).double())):
        assert essential_subspace(delta.double(), moment.double(), 4)[0].shape == (6, 0)


# One matrix


def test_a_task_that_changed_nothing_is_skipped() -> None:
    vectors = torch.stack([draw(8, 6, seed=0), torch.zeros(8, 6).double(), draw(8, 6, seed=1)])
    x = draw(4, 6, seed=2)
    for preset in ("paper", "official"):
        found = esm(vectors, 3 * [x.T @ x], 2, preset).to_dense()
        assert not found[1].any()
        assert found.isfinite().all()
        # In the paper's equations it is as though the task were not there: norms enter as ratios only.
        if preset == "paper":
            close(found[[0, 2]], esm(vectors[[0, 2]], 2 * [x.T @ x], 2, preset).to_dense())
    assert not esm(torch.zeros(3, 8, 6), 3 * [None], 2, "official").to_dense().any()


def test_one_task_keeps_the_whole_output_shift_to_its_polar_factor() -> None:
    """With T = 1 and a full rank P̃ = P and nothing is lost: ΔW is the polar factor of its column-scaled self."""
    vector = draw(5, 7, seed=0)
    x = draw(9, 7, seed=1)
    columns = vector.norm(dim=0)
    u, _, vh = torch.linalg.svd(vector * (columns / columns.mean()) ** 2, full_matrices=False)
    close(esm(vector[None], [x.T @ x], 5).to_dense()[0], u @ vh)


def test_experts_that_agree_are_merged_to_what_one_would_give() -> None:
    """Their subspaces coincide: an SVD would fill the polar factors' missing rank with directions of no meaning."""
    vector = draw(12, 7, seed=0)
    one = esm(vector[None], [None], 4).to_dense()[0]
    three = esm(torch.stack(3 * [vector]), 3 * [None], 4)
    close(dense(three), one)


@given(st.floats(1e-4, 1e4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_common_factor(factor: float, seed: int) -> None:
    """The paper's polar factors forget it; the authors' code brings it back."""
    vectors = torch.stack([draw(8, 6, seed=3 * seed + t) for t in range(3)])
    for preset, power in (("paper", 0), ("official", 1)):
        plain, scaled = (esm(v, 3 * [None], 2, preset).to_dense() for v in (vectors, factor * vectors))
        torch.testing.assert_close(scaled, factor**power * plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_factors_are_singular_triplets_of_each_task(preset: Any) -> None:
    vectors = torch.stack([draw(9, 12, seed=t) for t in range(3)])
    x = draw(2, 12, seed=5)  # the second task has two essential directions, the others three
    found = esm(vectors, [None, x.T @ x, None], 3, preset)
    assert found.rank == 3
    assert (found.S.diff(dim=1) <= 1e-12).all()
    for t in range(3):
        kept = 2 if t == 1 else 3
        for factor in (found.U[t], found.V[t]):
            close(factor.T @ factor, torch.eye(3, dtype=torch.float64))
        close(found.S[t], torch.linalg.svdvals(found.to_dense()[t])[:3])
        assert int((found.S[t] > 1e-9).sum()) == kept


def test_precision_of_the_experts_is_kept() -> None:
    vectors = torch.stack([draw(9, 12, seed=t) for t in range(3)])
    single = esm(vectors.float(), 3 * [None], 3)
    assert {single.U.dtype, single.S.dtype, single.V.dtype} == {torch.float32}
    wanted = esm(vectors, 3 * [None], 3).to_dense()
    assert (single.to_dense().double() - wanted).norm() < 1e-4 * wanted.norm()


# Layers


def test_layers_of_a_kind_are_weighed_by_their_norms() -> None:
    def delta(scale: float, m: int = 5) -> LowRank:
        return LowRank.from_dense(scale * torch.stack([draw(m, 4, seed=0), draw(m, 4, seed=1)]), 4)

    deltas: dict[str, Any] = {
        "blocks.0.fc.weight": delta(1),
        "blocks.1.fc.weight": delta(2),
        "blocks.12.fc.weight": delta(3),
        "blocks.0.other.weight": delta(5),  # alone
        "blocks.1.other.weight": delta(7, m=6),  # of another shape
        "text.blocks.0.fc.weight": delta(11),
        "blocks.0.fc.bias": torch.ones(2, 5),
    }
    found = layer_level(deltas, set(deltas))
    assert tuple(found) == tuple(deltas)
    for name, factor in {"0": 0.25, "1": 1.0, "12": 2.25}.items():
        before, after = (d[f"blocks.{name}.fc.weight"].to_dense() for d in (deltas, found))
        close(after, factor * before)
    for name in ("blocks.0.other.weight", "blocks.1.other.weight", "text.blocks.0.fc.weight"):
        close(found[name].to_dense(), deltas[name].to_dense())
    assert torch.equal(found["blocks.0.fc.bias"], deltas["blocks.0.fc.bias"])
    only = layer_level(deltas, {"blocks.0.fc.weight", "blocks.1.fc.weight"})
    close(only["blocks.1.fc.weight"].to_dense(), (4 / 3) ** 2 * deltas["blocks.1.fc.weight"].to_dense())
    assert only["blocks.12.fc.weight"] is deltas["blocks.12.fc.weight"]


def test_tasks_that_cancel_leave_a_layer_of_norm_zero() -> None:
    one = LowRank.from_dense(draw(1, 5, 4, seed=0), 4)
    zero = LowRank(one.U, torch.zeros_like(one.S), one.V)
    found = layer_level({"0.w": zero, "1.w": zero}, {"0.w", "1.w"})
    assert not any(found[name].to_dense().any() for name in found)  # type: ignore[union-attr]


# The authors' code


def official_essential(vectors: list[Tensor], xs: list[Tensor]) -> Tensor:
    """ΔW before the layer factor, from explicit activations."""
    tasks, m, n = len(vectors), *vectors[0].shape
    k = m // tasks
    wholes = [vector.norm() for vector in vectors]
    p_all, a_all = torch.zeros(m, tasks * k).double(), torch.zeros(tasks * k, n).double()
    for t, (vector, x) in enumerate(zip(vectors, xs, strict=True)):
        _, s, vh = torch.linalg.svd(x @ vector.T, full_matrices=False)
        values = torch.zeros(k).double()
        rank = min(k, int((s > 1e-10 * s[0]).sum()))
        values[:rank] = s[:rank].square() / (len(x) - 1)
        p = torch.zeros(m, k).double()
        p[:, :rank] = vh[:rank].T
        a = p.T @ vector * (wholes[t] / (sum(wholes) / tasks)) ** 2
        weights = values**0.15
        weights = weights / weights.mean()
        p_all[:, t * k : (t + 1) * k] = p * weights
        a_all[t * k : (t + 1) * k] = a * weights[:, None]
    columns = torch.stack([a_all[:, j].norm() for j in range(n)])
    for j in range(n):
        a_all[:, j] = a_all[:, j] * (columns[j] / columns.mean()) ** 2
    m_p, m_a = torch.linalg.svdvals(p_all).mean(), torch.linalg.svdvals(a_all).mean()
    there = p_all.any(0)
    u, _, vh = torch.linalg.svd(p_all[:, there], full_matrices=False)
    w, _, zh = torch.linalg.svd(a_all[there], full_matrices=False)
    return 2 * m_p * m_a * (u @ vh) @ (w @ zh)


def tsv(vectors: list[Tensor]) -> Tensor:
    rank = min(vectors[0].shape) // len(vectors)
    us, ss, vhs = zip(*(torch.linalg.svd(vector, full_matrices=False) for vector in vectors), strict=True)
    polar = []
    for factor in (torch.cat([u[:, :rank] for u in us], 1), torch.cat([vh[:rank].T for vh in vhs], 1)):
        u, _, vh = torch.linalg.svd(factor, full_matrices=False)
        polar.append(u @ vh)
    return polar[0] @ torch.cat([s[:rank] for s in ss]).diag() @ polar[1].T


def official(experts: dict[str, State], base: State, alpha: float) -> State:
    change = {}
    for name in SHAPES:
        vectors = [expert[name] - base[name] for expert in experts.values()]
        if name in ESSENTIAL:
            change[name] = official_essential(vectors, [activations(t, name) for t in range(len(vectors))])
        else:
            change[name] = tsv(vectors) if name in TWO_D else sum(vectors) / len(vectors)
    merged = {}
    for name, value in change.items():
        factor = 1.0
        if name in TWO_D and "resblocks" in name:
            same = [change[BLOCK.format(i, name.split(".", 3)[3])].norm() for i in range(2)]
            factor = (value.norm() / (sum(same) / 2)) ** 2
        merged[name] = base[name] + (alpha if name in ESSENTIAL else 1.0) * factor * value
    return merged


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_official_is_the_authors_code(tasks: int) -> None:
    experts, base = make(tasks)
    method = ESM(preset="official", scaling=0.7, moments=moments(tasks, ESSENTIAL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank = build_bank(experts, base, method=method)
    wanted = official(experts, base, 0.7)
    for name, value in bank.merge().items():
        error = (value - wanted[name]).norm() / (wanted[name] - base[name]).norm()
        assert error < 1e-10, name


def test_official_scales_three_kinds_only() -> None:
    bank = build_bank(*make(3), method=ESM(preset="official", scaling=0.7, moments=moments(3)))
    for name, column in zip(bank.layers, bank.coefficients.unbind(1), strict=True):
        assert column.tolist() == pytest.approx(3 * [0.7 if name in ESSENTIAL else 1.0])


def test_official_differs_from_the_paper() -> None:
    experts, base = make(3)
    name = ESSENTIAL[0]
    one, other = (
        build_bank(experts, base, method=ESM(preset=preset, moments=moments(3))).weight(name) - base[name]
        for preset in ("paper", "official")
    )
    assert (one / one.norm() - other / other.norm()).norm() > 0.1


def test_official_needs_the_names_of_open_clip() -> None:
    state = {"layer.0.query.weight": torch.ones(4, 4), "layer.0.query.bias": torch.ones(4)}
    with pytest.raises(MergeError, match="take preset=paper"):
        build_bank({"a": state}, state, method=ESM(preset="official"))


# Moments: none, some, from files, wrong ones


def test_without_moments_one_warning_says_how_many_and_which() -> None:
    experts, base = make(3)
    with pytest.warns(MergeWarning) as said:
        without = build_bank(experts, base, method=ESM())
    assert len(said) == 1
    text = str(said[0].message)
    assert "10 of 10 matrices" in text
    assert f"({TWO_D[0]}, {TWO_D[1]}, {TWO_D[2]}, …)" in text
    assert "C = I" in text
    eyes = {task: {name: torch.eye(SHAPES[name][1]) for name in TWO_D} for task in experts}
    identity = build_bank(experts, base, method=ESM(moments=eyes))
    identity_merged = identity.merge()
    for name, value in without.merge().items():
        close(identity_merged[name], value)


def test_some_weights_without_moments() -> None:
    experts, base = make(3)
    with pytest.warns(MergeWarning, match=r"2 of 10 matrices .* \(positional_embedding, proj\)"):
        build_bank(experts, base, method=ESM(moments=moments(3, [n for n in TWO_D if "resblocks" in n])))
    fewer = moments(3)
    del fewer["task1"]["proj"]  # one task lacks it
    with pytest.warns(MergeWarning, match=r"1 of 10 matrices .* \(proj\)"):
        build_bank(experts, base, method=ESM(moments=fewer))


def test_official_asks_for_the_moments_it_uses() -> None:
    experts, base = make(3)
    with pytest.warns(MergeWarning, match="6 of 6 matrices"):
        build_bank(experts, base, method=ESM(preset="official"))


def test_a_folder_of_moments_is_the_same_as_moments(tmp_path: Path) -> None:
    experts, base = make(3)
    save_moments(tmp_path / "moments", moments(3), Experts(experts))
    given = build_bank(experts, base, method=ESM(moments=moments(3)))
    read = build_bank(experts, base, method=ESM(moments=str(tmp_path / "moments")))
    lazy = build_bank(experts, base, method=ESM(moments=load_moments(tmp_path / "moments", Experts(experts))))
    read_merged = read.merge()
    lazy_merged = lazy.merge()
    for name, value in given.merge().items():
        assert torch.equal(read_merged[name], value)
        assert torch.equal(lazy_merged[name], value)
    assert given.method["moments"] == lazy.method["moments"] == "given"
    assert given.method["init_args"]["moments"] is lazy.method["init_args"]["moments"] is None  # type: ignore[index]
    assert read.method["init_args"]["moments"] == str(tmp_path / "moments")  # type: ignore[index]
    assert len(json.dumps(given.method)) < 300
    assert len(repr(ESM(moments=moments(3)))) < 300


def test_moments_belong_to_tasks_whatever_their_order() -> None:
    experts, base = make(3)
    turned = dict(reversed(moments(3).items())) | {"another": {}}
    for name, value in build_bank(experts, base, method=ESM(moments=turned)).merge().items():
        close(value, build_bank(experts, base, method=ESM(moments=moments(3))).merge()[name])


def test_moments_that_do_not_fit() -> None:
    experts, base = make(3)
    for wrong, said in (
        (moments(2), "none of task task2"),
        (moments(3) | {"task1": {"proj": torch.eye(12)}}, r"proj has shape \[12, 12\], expected \[8, 8\]"),
        (moments(3) | {"task1": {"proj": [[1.0]]}}, "proj is a list, expected a tensor"),
        (moments(3) | {"task1": {"nowhere": torch.eye(12)}}, "no 2-D weight nowhere"),
        (moments(3) | {"task1": {"conv1.weight": torch.eye(12)}}, r"no 2-D weight conv1\.weight"),
        (moments(3) | {"task1": moments(3)["task1"] | {"proj": torch.full((8, 8), torch.nan)}}, "NaN"),
    ):
        with pytest.raises(MergeError, match=said) as error:
            build_bank(experts, base, method=ESM(moments=wrong))
        assert "\n" not in str(error.value)


# Hyper-parameters


def test_more_tasks_than_outputs() -> None:
    experts, base = make(6)
    with pytest.warns(MergeWarning, match="positional_embedding: fewer directions than the 6 tasks, so merged as what"):
        bank = build_bank(experts, base, method=ESM(moments=moments(6)))
    tau = torch.stack([expert["positional_embedding"] - base["positional_embedding"] for expert in experts.values()])
    torch.testing.assert_close(bank.deltas["positional_embedding"], tau / 6)
    build_bank(experts, base, method=ESM(moments=moments(6), matrices="block"))


def test_rank_ratio() -> None:
    experts, base = make(3)
    bank = build_bank(experts, base, method=ESM(moments=moments(3), rank_ratio=0.1))
    assert bank.ranks == {name: max(1, SHAPES[name][0] // 10) for name in TWO_D}
    full = build_bank(experts, base, method=ESM(moments=moments(3)))
    # 9 rows of activations: at most 9 essential directions.
    assert full.ranks == {name: min(SHAPES[name][0] // 3, 9, SHAPES[name][1]) for name in TWO_D}
    with pytest.raises(MergeError, match=r"rank_ratio=0\.5 .* take at most 0\.3333"):
        build_bank(experts, base, method=ESM(moments=moments(3), rank_ratio=0.5))


@pytest.mark.parametrize("options", [{"rank_ratio": 0.0}, {"preset": "authors"}, {"samples": 0}])
def test_options_outside_their_range(options: Any) -> None:
    with pytest.raises((MergeError, TypeError)):
        ESM(**options)


@pytest.mark.parametrize("moments", [None, "some/folder"])
def test_it_can_be_written_in_a_configuration(tmp_path: Path, moments: str | None) -> None:
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(MergeMethod, "method")
    init_args = {"preset": "official", "scaling": 0.5, "samples": 16, "moments": moments, "matrices": "block"}
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump({"method": {"class_path": "ESM", "init_args": init_args}}))
    # Renamed in later versions.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    found = instantiate(parser.parse_args([f"--config={tmp_path / 'merge.yaml'}"])).method
    assert found == ESM(**init_args)
    assert found.moments == moments
    dumped = parser.dump(parser.parse_args([f"--config={tmp_path / 'merge.yaml'}", "--method.samples=8"]))
    assert "samples: 8" in dumped


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_a_tower_from_files_to_a_merge(tiny: Any, preset: Any) -> None:
    opened = Experts(tiny.experts, tiny.base)
    found = collect_moments(opened, tiny.encoder(), tiny.data().unlabelled(), samples=8)
    names = [n for n, shape in opened.shapes.items() if len(shape) == 2 and "resblocks" in n]
    method = ESM(preset=preset, moments=found, matrices=names, scaling="self_consistent")
    bank = build_bank(opened, method=method)
    assert set(bank.ranks) == set(names)
    assert bank.method["chosen"]["scaling"] > 0  # type: ignore[index]
    assert all(value.isfinite().all() for value in bank.merge().values())
