"""What adaptation learns of a bank next to one coefficient per task and weight, by the names that files use.

- `directions/NAME` (T or 1, r): a coefficient for every direction of a low-rank delta, in place of the weight's own.
- `A/NAME` (m, k) and `B/NAME` (k, n): A·B is added to the origin of a matrix.
- `correction/NAME`: is added to the origin of another weight, whose shape it has.

The last two are the shared correction: one for all tasks.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

DIRECTIONS = "directions"
CORRECTION = ("A", "B", "correction")
KINDS = (DIRECTIONS, *CORRECTION)
NOTHING: Mapping[str, Tensor] = {}


def is_learnt(key: str) -> bool:
    """Whether a name in a bank's file is one of these."""
    return key.partition("/")[0] in KINDS


def of_weight(learnt: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Kind → value, of one weight."""
    return {kind: learnt[f"{kind}/{name}"] for kind in KINDS if f"{kind}/{name}" in learnt}


def corrected(origin: Float[Tensor, "..."], part: Mapping[str, Tensor]) -> Float[Tensor, "..."]:
    """The origin of a weight with its correction, where the correction lies, differentiable in it."""
    if "A" in part:
        a, b = part["A"].to(origin.dtype), part["B"].to(origin.dtype)
        return torch.addmm(origin.to(a.device, non_blocking=True), a, b)
    if "correction" in part:
        return origin.to(part["correction"].device, non_blocking=True) + part["correction"].to(origin.dtype)
    return origin


def relative_size(learnt: Mapping[str, Tensor], origin: Mapping[str, Tensor]) -> float:
    """‖correction‖ / ‖origin‖ in the Frobenius norm, over all weights that have a correction; 0 where none has."""
    moved = whole = 0.0
    for name in dict.fromkeys(key.partition("/")[2] for key in learnt if key.partition("/")[0] in CORRECTION):
        value = origin[name].double()
        moved += corrected(torch.zeros_like(value), of_weight(learnt, name)).square().sum().item()
        whole += value.square().sum().item()
    return (moved / whole) ** 0.5 if whole else 0.0


def shape_of(key: str, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...] | None:
    """The shape that a learnt tensor must have next to the other tensors of its bank; None where it has no place."""
    kind, _, name = key.partition("/")
    origin = tuple(shapes.get(f"origin/{name}", ()))
    if kind == DIRECTIONS:
        return tuple(shapes[f"S/{name}"]) if f"S/{name}" in shapes else None
    if kind == "correction":
        return origin if f"origin/{name}" in shapes else None
    a, b = shapes.get(f"A/{name}", ()), shapes.get(f"B/{name}", ())
    if not (len(origin) == len(a) == len(b) == 2 and a[1] == b[0]):
        return None
    return (origin[0], a[1]) if kind == "A" else (b[0], origin[1])


def cut(learnt: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """With the coefficients of the leading directions only, of the weights that are named."""

    def sliced(key: str) -> Tensor:
        kind, _, name = key.partition("/")
        return learnt[key][..., : ranks[name]] if kind == DIRECTIONS and name in ranks else learnt[key]

    return {key: sliced(key) for key in learnt}


def without(learnt: Mapping[str, Tensor], kinds: Iterable[str]) -> dict[str, Tensor]:
    """All but these kinds."""
    dropped = tuple(kinds)
    return {key: learnt[key] for key in learnt if key.partition("/")[0] not in dropped}
