"""Directions and rows as integers, read back by numpy."""

import numpy as np
import pytest
import torch

from lit_merge.bank.storage_types import TYPES, pack_rows, unpack_rows


def read(stored: torch.Tensor, name: str, count: int) -> np.ndarray:
    """As docs/bank_format.md says."""
    if name == "int4":
        codes = np.stack([stored.numpy() & 15, stored.numpy() >> 4], -1).reshape(len(stored), -1)[:, :count]
        values = codes.astype(np.float64) - 8
    else:
        values = stored.double().numpy()
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "least"),
    [("float32", 1 - 1e-6), ("float16", 1 - 1e-6), ("bfloat16", 1 - 1e-5), ("int8", 0.9998), ("int4", 0.985)],
)
@pytest.mark.parametrize("count", [1, 7, 64, 333])
def test_directions(name: str, least: float, count: int) -> None:
    torch.manual_seed(count)
    kind, vectors = TYPES[name], torch.nn.functional.normalize(torch.randn(20, count), dim=-1)
    stored = kind.pack(vectors)
    assert stored.dtype == kind.dtype
    assert stored.nbytes == 20 * kind.nbytes(count)
    found = kind.unpack(stored, count)
    np.testing.assert_allclose(found.numpy(), read(stored, name, count), atol=1e-6)
    cosines = (found * vectors).sum(-1)
    assert (cosines > (least if count > 7 or not kind.is_integer else 0.95)).all()


def test_four_bits_hold_what_they_can_to_the_bit() -> None:
    codes = torch.randint(-7, 8, (9, 11)).float()
    codes[:, 0] = 7
    vectors = torch.nn.functional.normalize(codes, dim=-1)
    torch.testing.assert_close(TYPES["int4"].unpack(TYPES["int4"].pack(vectors), 11), vectors)


def test_rows_have_scales_of_their_own() -> None:
    value = torch.randn(6, 3, 5) * torch.tensor([1e-6, 1e-3, 1, 1e3, 1e6, 0])[:, None, None]
    stored, scales = pack_rows(value)
    assert (stored.dtype, scales.dtype, scales.shape) == (torch.int8, torch.bfloat16, (6,))
    rows = value.flatten(1)
    error = (unpack_rows(stored, scales).flatten(1) - rows).abs().amax(1)
    assert (error <= 0.51 / 126 * rows.abs().amax(1)).all()
