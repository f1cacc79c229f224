"""The tensors of a weight as a compressed bank's file holds them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lit_merge.bank.low_rank import LowRank
from lit_merge.bank.packing import BASE, Packed, sides_stored
from lit_merge.bank.storage_types import TYPES, StorageType, pack_rows


def packed_tensors(
    name: str, packed: Packed, origin: Tensor, directions: Callable[[str], LowRank]
) -> Iterator[tuple[str, list[Tensor]]]:
    """The tensors of one weight in the file, each in the parts (of a task) that have checksums of their own.

    Args:
        name: of the weight.
        packed: what lies in the file.
        origin: of the bank.
        directions: asked for the weight's, where any lie in the file.

    Yields:
        A name in the file, and the parts of its value, one of every task where there are such.
    """
    if packed.origin == "int8":
        rows, scales = pack_rows(origin)
        yield f"origin/{name}", [rows]
        yield f"scale/{name}", [scales]
    elif packed.origin != BASE:
        yield f"origin/{name}", [origin.to(TYPES[packed.origin].dtype) if origin.is_floating_point() else origin]
    if not packed.ranks:
        return
    found = directions(name)
    sides = sides_stored(*packed.sides)
    values: dict[str, list[Tensor]] = {f"S/{name}": []}
    for row in range(len(found.S)):
        first, sizes = 0, []
        for kind, (_, count) in packed.counts(row).items():
            own = slice(first, first + count)
            s = found.S[row, own].double()
            for side, factor in (("U", found.U), ("V", found.V)):
                if side in sides:
                    columns, cosine = as_stored(TYPES[kind], factor[row, :, own])
                    values.setdefault(f"{side}/{kind}/{name}", []).append(columns)
                    s = s * cosine
            first += count
            sizes.append(s.float())
        values[f"S/{name}"].append(torch.cat(sizes))
    yield from values.items()


def as_stored(kind: StorageType, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of (n, k) as the file holds them, a row each, and the cosines of what is read with what was stored."""
    rows = kind.pack(vectors.T.float().contiguous())
    return rows, (kind.unpack(rows, len(vectors)).double() * vectors.T.double()).sum(-1)
