"""Decompositions against their definitions."""

import pytest
import torch

from lit_merge.bank.linalg import (
    numerical_rank,
    partial_isometry,
    polar_factor,
    product_svd,
    square_root,
    truncated_svd,
)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (3, 6, 4), (1, 1)])
def test_truncated_svd(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    rank = min(shape[-2:])
    for k in range(1, rank + 1):
        u, s, v = truncated_svd(matrix, k)
        torch.testing.assert_close(s, torch.linalg.svdvals(matrix)[..., :k])
        torch.testing.assert_close(u.mT @ u, torch.eye(k, dtype=torch.float64).expand(*shape[:-2], k, k))
        torch.testing.assert_close(v.mT @ v, torch.eye(k, dtype=torch.float64).expand(*shape[:-2], k, k))
    torch.testing.assert_close(u @ s.diag_embed() @ v.mT, matrix)


def test_rank_deficient_and_zero() -> None:
    column, row = torch.randn(6, 1, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    u, s, v = truncated_svd(column @ row, 3)
    torch.testing.assert_close(u @ s.diag() @ v.T, column @ row)
    u, s, v = truncated_svd(torch.zeros(4, 3), 2)
    assert not s.any()
    assert (u @ s.diag() @ v.T).isfinite().all()


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_polar_factor(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    polar = polar_factor(matrix)
    small = polar.T @ polar if shape[0] > shape[1] else polar @ polar.T
    torch.testing.assert_close(small, torch.eye(4, dtype=torch.float64))
    # The nearest one: the remaining factor is symmetric and positive.
    rest = polar.T @ matrix if shape[0] > shape[1] else matrix @ polar.T
    torch.testing.assert_close(rest, rest.T)
    assert torch.linalg.eigvalsh(rest).min() > 0


def test_polar_factor_of_nearly_dependent_columns_in_float32() -> None:
    one = torch.randn(50, 1)
    matrix = torch.cat([one, one + 1e-5 * torch.randn(50, 1)], 1)
    polar = polar_factor(matrix)
    assert polar.dtype == torch.float32
    torch.testing.assert_close(polar.T @ polar, torch.eye(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_partial_isometry(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    found, s = partial_isometry(matrix)
    torch.testing.assert_close(found, polar_factor(matrix))
    torch.testing.assert_close(s, torch.linalg.svdvals(matrix))
    # Rank 2: W·Wᵀ·W = W holds of a partial isometry, and nothing outside the matrix's own spaces is touched.
    poor = torch.randn(shape[0], 2, dtype=torch.float64) @ torch.randn(2, shape[1], dtype=torch.float64)
    found, s = partial_isometry(poor)
    assert int(numerical_rank(s, shape)) == 2
    torch.testing.assert_close(found @ found.T @ found, found)
    torch.testing.assert_close(found.square().sum().item(), 2.0)
    torch.testing.assert_close(poor @ found.T @ found, poor)
    assert not partial_isometry(torch.zeros(shape))[0].any()


def test_square_root() -> None:
    x = torch.randn(3, 7, dtype=torch.float64)
    root = square_root(x.T @ x)
    assert root.shape == (7, 3)  # eigenvalues that are rounding are gone
    torch.testing.assert_close(root @ root.T, x.T @ x)
    assert square_root(torch.zeros(4, 4)).shape == (4, 0)


@pytest.mark.parametrize("shape", [(6, 3, 5), (3, 3, 8), (7, 1, 1)])
def test_product_svd(shape: tuple[int, int, int]) -> None:
    m, r, n = shape
    left, right = torch.randn(2, m, r, dtype=torch.float64), torch.randn(2, r, n, dtype=torch.float64)
    u, s, v = product_svd(left, right)
    torch.testing.assert_close((u * s[:, None]) @ v.mT, left @ right)
    torch.testing.assert_close(s, torch.linalg.svdvals(left @ right)[:, :r])
    for factor in (u, v):
        torch.testing.assert_close(factor.mT @ factor, torch.eye(r, dtype=torch.float64).expand(2, r, r))
