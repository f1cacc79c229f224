"""How the numbers of a compressed bank are stored: float32, float16, bfloat16, int8, or four bits.

A direction is a vector whose length says nothing: its singular value does. So integers need no scale of their own: a
direction is stored as q = round(v / step), and read as q / ‖q‖. Rows of an origin have a scale each, in bfloat16.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

# Of the largest entry of a direction, what the largest of 4 bits stands for: the best one is taken.
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6)
# Largest values of signed integers with a sign each way.
LARGEST = {4: 7, 8: 127}


@dataclass(frozen=True)
class StorageType:
    """One of them.

    Attributes:
        name: in files and options.
        dtype: of the tensors in the file; two numbers of four bits share a byte.
        bits: of one number.
    """

    name: str
    dtype: torch.dtype
    bits: int

    @property
    def is_integer(self) -> bool:
        return not self.dtype.is_floating_point

    def width(self, count: int) -> int:
        """Entries of the file's dtype that so many numbers take."""
        return -(-count // 2) if self.bits == 4 else count

    def nbytes(self, count: int) -> int:
        """Bytes of so many numbers."""
        return self.width(count) * self.dtype.itemsize

    def pack(self, directions: Float[Tensor, "r n"]) -> Shaped[Tensor, "r _"]:
        """Directions as files hold them, a row each."""
        if not self.is_integer:
            return directions.to(self.dtype)
        largest = directions.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        if self.bits == 8:
            return (directions * (LARGEST[8] / largest)).round().to(torch.int8)
        best = closest = directions.new_zeros(0)
        for clip in CLIPS:
            q = (directions * (LARGEST[4] / (clip * largest))).round().clamp(-LARGEST[4], LARGEST[4])
            cosine = (q * directions).sum(-1) / q.norm(dim=-1).clamp_min(1e-30)
            if not len(best):
                best, closest = q, cosine
            better = cosine > closest
            best, closest = torch.where(better[:, None], q, best), torch.where(better, cosine, closest)
        # From −7 … 7 to 1 … 15, the first of two in the lower half.
        codes = torch.nn.functional.pad((best + 8).to(torch.uint8), (0, best.shape[-1] % 2))
        return codes[:, ::2] | codes[:, 1::2] << 4

    def unpack(self, stored: Shaped[Tensor, "r w"], count: int) -> Float[Tensor, "r n"]:
        """The directions, of length 1, in float32."""
        if self.bits == 4:
            codes = torch.stack([stored & 15, stored >> 4], -1).flatten(1)[:, :count]
            stored = codes.to(torch.int8) - 8
        values = stored.to(torch.float32)
        return values / values.norm(dim=-1, keepdim=True).clamp_min(1e-30)


TYPES = {
    one.name: one
    for one in (
        StorageType("float32", torch.float32, 32),
        StorageType("float16", torch.float16, 16),
        StorageType("bfloat16", torch.bfloat16, 16),
        StorageType("int8", torch.int8, 8),
        StorageType("int4", torch.uint8, 4),
    )
}


def pack_rows(value: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    """An origin as int8 and a scale for every row of it (of what its first axis counts)."""
    rows = value.flatten(1).float()
    scales = (rows.abs().amax(-1) / LARGEST[8]).clamp_min(1e-30).to(torch.bfloat16)
    q = (rows / scales.float()[:, None]).round().clamp(-LARGEST[8], LARGEST[8])
    return q.to(torch.int8).view(value.shape), scales


def unpack_rows(stored: Shaped[Tensor, "..."], scales: Float[Tensor, " m"]) -> Float[Tensor, "..."]:
    """The origin, in float32."""
    return (stored.flatten(1).float() * scales.float()[:, None]).view(stored.shape)
