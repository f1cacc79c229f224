"""The tensors of a weight as a compressed bank's file holds them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

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
                    columns, read = as_stored(TYPES[kind], factor[row, :, own])
                    values.setdefault(f"{side}/{kind}/{name}", []).append(columns)
                    s = s * (read * factor[row, :, own].T.double()).sum(-1)
            first += count
            sizes.append(s.float())
        values[f"S/{name}"].append(torch.cat(sizes))
    yield from values.items()


def as_stored(kind: StorageType, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of (n, k) as the file holds them, a row each, and as they are read from it: (k, n) in float64."""
    rows = kind.pack(vectors.T.float().contiguous())
    return rows, kind.unpack(rows, len(vectors)).double()


def squared_sines(kind: StorageType, vectors: Tensor) -> Tensor:
    """Of the angles between columns of (n, k) and what is read of them, one each.

    Those of float16 are about 1e-8: lost where they are taken as what cosines lack to 1, in float32 or of vectors whose
    length is 1 in float32 only.
    """
    own, read = (functional.normalize(one, dim=-1) for one in (vectors.T.double(), as_stored(kind, vectors)[1]))
    return (own - (own * read).sum(-1, keepdim=True) * read).square().sum(-1)
