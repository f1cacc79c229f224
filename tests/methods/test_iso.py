"""What must hold of Iso-C and Iso-CTS (METHODS: arXiv 2502.04959)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_merge import IsoC, IsoCTS, LowRank, MergeError, build_bank
from lit_merge.bank.low_rank import ranks_left
from lit_merge.experts.decompositions import Decompositions
from lit_merge.methods.iso import iso_c
from lit_merge.methods.iso_cts import iso_cts


def draw(tasks: int, m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(tasks, m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(tau: Tensor, ratio: float) -> Tensor:
    """Iso-CTS word for word; the inverse root of UᵀU is another way to the polar factor."""
    tasks, r = len(tau), min(tau.shape[1:])
    q = round((r - int(ratio * r)) / tasks)
    c = r - tasks * q
    left, s, right = torch.linalg.svd(sum(tau), full_matrices=False)
    us, ss, vs = [left[:, :c]], [s[:c]], [right[:c].T]
    projection = torch.eye(len(left), dtype=torch.float64) - left[:, :c] @ left[:, :c].T
    for one in tau:
        left, s, right = torch.linalg.svd(projection @ one, full_matrices=False)
        us.append(left[:, :q])
        ss.append(s[:q])
        vs.append(right[:q].T)
    sides = []
    for side in (torch.cat(us, 1), torch.cat(vs, 1)):
        values, vectors = torch.linalg.eigh(side.T @ side)
        sides.append(side @ vectors @ values.rsqrt().diag() @ vectors.T)
    return torch.cat(ss).mean() * sides[0] @ sides[1].T


@given(st.integers(1, 4), st.integers(8, 18), st.integers(8, 18), st.sampled_from([0.5, 0.75, 0.8]), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_iso_cts_is_its_formula(tasks: int, m: int, n: int, ratio: float, seed: int) -> None:
    tau = draw(tasks, m, n, seed)
    # eigh of a Gram matrix loses digits that depend on how nearly the directions coincide.
    torch.testing.assert_close(iso_cts(tau, ratio).to_dense()[0], literal(tau, ratio), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("tasks", "r", "ratio", "q"),
    [
        (8, 768, 0.8, 19),  # 154/8 = 19.25
        (14, 768, 0.8, 11),
        (20, 768, 0.8, 8),  # 7.7
        (2, 5, 0.8, 0),  # 0.5 to even
        (2, 15, 0.8, 2),  # 1.5 to even
        (2, 25, 0.8, 2),  # 2.5 to even
        (3, 10, 0.8, 1),
        (4, 3, 0.0, 0),  # 0.75 would be one for each of four, of three
        (2, 3, 0.0, 1),  # 1.5 would be two for each of two, of three
        (1, 100, 0.29, 71),  # 0.29·100 is 28.999… in binary
        (1, 10, 1.0, 0),
    ],
)
def test_directions_of_every_task(tasks: int, r: int, ratio: float, q: int) -> None:
    assert ranks_left(ratio, r, tasks) == q


@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_spectrum_is_flat_and_the_factors_are_orthonormal(
    tasks: int, m: int, n: int, ratio: float, seed: int
) -> None:
    delta = iso_cts(draw(tasks, m, n, seed), ratio)
    r = min(m, n)
    assert delta.shape == (1, m, n)
    assert delta.rank == r
    assert delta.S.min() == delta.S.max() > 0
    for side in (delta.U[0], delta.V[0]):
        torch.testing.assert_close(side.T @ side, torch.eye(r, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3, 7), (9, 5)])
def test_no_direction_of_a_task_is_iso_c(shape: tuple[int, int]) -> None:
    tau = draw(6, *shape)
    assert ranks_left(0.8, min(shape), 6) == 0
    one, other = iso_cts(tau), iso_c(tau.sum(0))
    assert torch.equal(one.to_dense(), other.to_dense())
    u, s, vh = torch.linalg.svd(tau.sum(0), full_matrices=False)
    torch.testing.assert_close(other.to_dense()[0], s.mean() * u @ vh)


def test_one_task_is_iso_c() -> None:
    """What the common directions leave of the one task vector are its other directions."""
    tau = draw(1, 10, 14)
    assert ranks_left(0.8, 10, 1) == 2
    torch.testing.assert_close(iso_cts(tau).to_dense(), iso_c(tau.sum(0)).to_dense())


def test_a_bank_of_either_has_one_delta_and_the_mean_of_the_rest() -> None:
    names = {"resblocks.0.attn.out_proj.weight": (12, 12), "ln.bias": (12,), "text_projection": (12, 8)}
    generator = torch.Generator().manual_seed(0)
    state = lambda: {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in names.items()}  # noqa: E731
    base, experts = state(), {f"task{t}": state() for t in range(3)}
    matrix = next(iter(names))
    tau = torch.stack([expert[matrix] - base[matrix] for expert in experts.values()])
    flat = {IsoC: iso_c(tau.sum(0)), IsoCTS: iso_cts(tau)}
    for method, delta in flat.items():
        bank = build_bank(experts, base, method=method(scaling=1.3))
        assert bank.shared
        assert bank.ranks == {matrix: 12}
        torch.testing.assert_close(bank.merge()[matrix], base[matrix] + 1.3 * delta.to_dense()[0])
        merged = bank.merge()
        for name in ("ln.bias", "text_projection"):
            mean = sum(expert[name] - base[name] for expert in experts.values()) / 3
            torch.testing.assert_close(merged[name], base[name] + 1.3 * mean)
        with pytest.raises(MergeError, match="one delta for all tasks"):
            bank.expert("task0")
    assert not torch.allclose(flat[IsoC].to_dense(), flat[IsoCTS].to_dense())


def test_both_share_the_decomposition_of_the_sum() -> None:
    state = lambda seed: {"resblocks.0.mlp.c_fc.weight": draw(1, 12, 16, seed)[0]}  # noqa: E731
    experts, kept = {f"task{t}": state(t + 1) for t in range(3)}, Decompositions()
    first = build_bank(experts, state(0), method=IsoC(), decompositions=kept)
    assert kept.computed == 1
    shared = build_bank(experts, state(0), method=IsoCTS(), decompositions=kept)
    assert kept.computed == 1
    for method, bank in ((IsoC(), first), (IsoCTS(), shared)):
        alone = build_bank(experts, state(0), method=method)
        merged = bank.merge()
        for name, value in alone.merge().items():
            torch.testing.assert_close(merged[name], value)


def test_matrices_can_be_chosen() -> None:
    base = {"a.weight": draw(1, 6, 6, 9)[0], "b.weight": draw(1, 6, 6, 8)[0]}
    experts = {f"task{t}": {n: w + draw(1, 6, 6, t)[0] for n, w in base.items()} for t in range(2)}
    bank = build_bank(experts, base, method=IsoCTS(matrices=["a.*"], common_ratio=0.5))
    assert isinstance(bank.deltas["a.weight"], LowRank)
    assert isinstance(bank.deltas["b.weight"], Tensor)


@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan")])
def test_ratio_outside_its_range(ratio: float) -> None:
    with pytest.raises(MergeError, match=r"common_ratio=.*(is outside \[0, 1\]|expected a finite number)"):
        IsoCTS(common_ratio=ratio)
