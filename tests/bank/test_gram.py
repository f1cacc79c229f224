"""Leading triplets and polar factors of large float32 matrices against whole decompositions."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_merge.bank.linalg import LARGE, approximation, polar_factor, truncated_svd
from tests.spectra import COUNT, SPECTRA, with_spectrum

SHAPES = [(LARGE, LARGE), (3 * LARGE, LARGE), (LARGE, 2 * LARGE)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("rank", [1, 30, 48, 150, 192])
def test_leading_triplets(shape: tuple[int, int], spectrum: str, rank: int) -> None:
    matrix = with_spectrum(shape, SPECTRA[spectrum])
    u, s, v = truncated_svd(matrix, rank)
    assert u.shape == (shape[0], rank)
    assert v.shape == (shape[1], rank)
    for factor in (u, v):
        torch.testing.assert_close(factor.T @ factor, torch.eye(rank), atol=1e-5, rtol=0)
    best = SPECTRA[spectrum][:rank].square().sum()
    captured = (u.T @ matrix).square().sum()
    torch.testing.assert_close(s.square().sum(), captured, rtol=1e-4, atol=0)
    assert captured >= (1 - 5e-4) * best
    # The largest ones are what they are, long before the last ones are.
    torch.testing.assert_close(s[: rank // 2], SPECTRA[spectrum][: rank // 2], rtol=1e-3, atol=0)
    again = truncated_svd(matrix, rank)
    assert all(torch.equal(a, b) for a, b in zip((u, s, v), again, strict=True))


def test_shortcuts_are_shortcuts_and_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_spectrum(SHAPES[0], SPECTRA["power"])
    whole = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda a, **options: whole.append(a.shape) or svd(a, **options))
    truncated_svd(matrix, 20)
    assert matrix.shape not in whole
    _, s, _ = truncated_svd(matrix, 20, exact=True)
    torch.testing.assert_close(s, SPECTRA["power"][:20], rtol=1e-5, atol=0)
    truncated_svd(matrix.double(), 20)
    truncated_svd(matrix, LARGE)
    assert [one for one in whole if one == matrix.shape] == [matrix.shape] * 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [0, 5, 100])
def test_matrices_that_lack_rank(shape: tuple[int, int], rank: int) -> None:
    values = torch.where(rank >= COUNT, SPECTRA["power"], 0)
    matrix = with_spectrum(shape, values) if rank else torch.zeros(shape)

    u, s, v = truncated_svd(matrix, 60)
    assert all(one.isfinite().all() for one in (u, s, v))
    torch.testing.assert_close(s, values[:60], atol=1e-5, rtol=5e-2)
    if rank <= 60:
        torch.testing.assert_close((u * s) @ v.T, matrix, atol=1e-5, rtol=0)


def test_a_batch_is_its_matrices() -> None:
    batch = torch.stack([with_spectrum(SHAPES[1], SPECTRA[name], seed=1) for name in SPECTRA])
    together = truncated_svd(batch, 20)
    for i, matrix in enumerate(batch):
        assert all(torch.equal(a[i], b) for a, b in zip(together, truncated_svd(matrix, 20), strict=True))


@pytest.mark.parametrize("shape", [*SHAPES, (2 * LARGE, LARGE)])
@pytest.mark.parametrize("condition", [2.0, 50.0, 1e4, 1e5])
def test_polar_factors(shape: tuple[int, int], condition: float) -> None:
    matrix = with_spectrum(shape, torch.logspace(0, -1, LARGE, base=condition))
    expected = polar_factor(matrix, exact=True)
    found = polar_factor(matrix)
    assert found.dtype == torch.float32
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    small = found.T @ found if shape[0] >= shape[1] else found @ found.T
    torch.testing.assert_close(small, torch.eye(LARGE), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 300])
@pytest.mark.parametrize("shape", SHAPES)
def test_polar_factor_of_dependent_columns(shape: tuple[int, int], rank: int) -> None:
    matrix = with_spectrum(shape, torch.where(rank >= COUNT, SPECTRA["power"], 0))
    found = polar_factor(matrix)
    # U·Vᵀ of the directions that the matrix has, and nothing where it has none.
    u, _, vh = np.linalg.svd(matrix.double().numpy())
    expected = torch.from_numpy(u[:, :rank] @ vh[:rank]).float()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("condition", [1e3, 1e6])
@pytest.mark.parametrize("rank", [40, LARGE])
def test_ill_conditioned(condition: float, rank: int) -> None:
    values = torch.logspace(0, -1, LARGE, base=condition)
    matrix = with_spectrum(SHAPES[1], values)
    u, s, v = truncated_svd(matrix, rank)
    for factor in (u, v):
        torch.testing.assert_close(factor.T @ factor, torch.eye(rank), atol=1e-4, rtol=0)
    torch.testing.assert_close((u * s) @ v.T, with_spectrum(SHAPES[1], values * (rank >= COUNT)), atol=1e-4, rtol=0)
    assert bool((s[:-1] >= s[1:] * (1 - 1e-5)).all())


@pytest.mark.parametrize("power", [-100, -60, -40, 40, 64, 120])
def test_any_size(power: int) -> None:
    """A power of two changes no digit, also where squares of the entries are no numbers in float32."""
    matrix, size = with_spectrum(SHAPES[0], SPECTRA["power"]), 2.0**power
    for rank in (1, 40, 200):
        u, s, v = truncated_svd(matrix, rank)
        assert all(
            torch.equal(*pair) for pair in zip(truncated_svd(size * matrix, rank), (u, size * s, v), strict=True)
        )
    assert torch.equal(polar_factor(size * matrix), polar_factor(matrix))
    assert torch.equal(approximation(size * matrix, 40), size * approximation(matrix, 40))


# Spectra of matrices whose left vectors come out of dependent columns: ranks, gaps, equal and tiny singular values.
def _spectrum(rank: int, kind: str) -> torch.Tensor:
    there = (rank >= COUNT).float()
    kinds = {
        "power": COUNT.pow(-0.6),
        "gap": torch.where(rank // 2 < COUNT, 1e-3, 1.0),
        "equal": torch.ones(LARGE),
        "tiny": torch.logspace(0, -6, LARGE),
    }
    return kinds[kind] * there


# Directions of rounding's size are orthogonal to the strong ones, too.
@example(shape=(LARGE, LARGE), rank=200, kind="tiny", spare=184, dtype=torch.float32, seed=0)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    rank=st.sampled_from([0, 1, 4, 31, 64, 200, LARGE - 1, LARGE]),
    kind=st.sampled_from(["power", "gap", "equal", "tiny"]),
    spare=st.sampled_from([0, 1, 40]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 5),
)
def test_factors_give_back_the_matrix(
    shape: tuple[int, int], rank: int, kind: str, spare: int, dtype: torch.dtype, seed: int
) -> None:
    """Every left vector has the sign of its right one, also where a matrix lacks rank: judged in float64 by what whole
    decompositions leave, and by the matrix."""
    matrix = with_spectrum(shape, _spectrum(rank, kind), seed).to(dtype).float()
    k = min(LARGE, max(1, rank) + spare)
    u, s, v = (one.double().numpy() for one in truncated_svd(matrix, k))
    whole = matrix.double().numpy()
    values = np.linalg.svd(whole, compute_uv=False)
    left, size = np.linalg.norm(whole - (u * s) @ v.T), np.linalg.norm(whole)
    assert left <= np.sqrt((values[k:] ** 2).sum()) * (1 + 1e-3) + 1e-4 * size
    assert np.abs(u.T @ u - np.eye(k)).max() < 1e-4
    assert np.abs(v.T @ v - np.eye(k)).max() < 1e-4
    assert np.abs(np.einsum("ir,ij,jr->r", u, whole, v) - s).max() <= 1e-4 * max(values[0], 1e-30)
