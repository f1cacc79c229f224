"""Low-rank updates: what an expert adds to its base's weight, in the precision in which it was trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Update:
    """left·right, added to a weight of this shape, of which `right` has all dimensions but the first as one.

    Attributes:
        left: (m, r), in float32 or more; r = 0 where an adapter leaves the weight as it is.
        right: (r, n), likewise.
        shape: of the weight.
        dtype: in which the adapter holds its parts.
    """

    left: Float[Tensor, "m r"]
    right: Float[Tensor, "r n"]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def none(cls, shape: tuple[int, ...], dtype: torch.dtype) -> "Update":
        """The update of a weight that stays as it is."""
        m = shape[0] if shape else 1
        n = max(1, torch.Size(shape[1:]).numel())
        return cls(torch.zeros(m, 0), torch.zeros(0, n), shape, dtype)

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def dense(self) -> Tensor:
        """The product, in the shape of the weight."""
        return (self.left @ self.right).view(self.shape)

    def turned(self) -> "Update":
        """The update of the transposed matrix."""
        return replace(self, left=self.right.T, right=self.left.T, shape=self.shape[::-1])

    def first_rows(self, count: int) -> "Update":
        """The update of the first rows of the weight."""
        return replace(self, left=self.left[:count], shape=(count, *self.shape[1:]))

    def to(self, device: torch.device) -> "Update":
        return replace(self, left=self.left.to(device), right=self.right.to(device))


def stacked(parts: Sequence[Update]) -> Update:
    """The update of a weight in which several lie one above the other."""
    left, right = torch.block_diag(*(part.left for part in parts)), torch.cat([part.right for part in parts])
    return replace(parts[0], left=left, right=right, shape=(len(left), *parts[0].shape[1:]))
