"""The tensors of a bank by the names that files use: `origin/…`, `U/…`, `S/…`, `V/…`, `delta/…`, `coefficients`,
and those of `bank/learnt.py`."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from lit_merge.bank.checksums import checksums, is_summed
from lit_merge.bank.learnt import NOTHING, is_learnt
from lit_merge.bank.low_rank import Delta, LowRank, tensors_of
from lit_merge.bank.on_demand import OnDemand, mapping_like, without_values
from lit_merge.checkpoints.tensor_values import bytes_of


def named_tensors(
    origin: Mapping[str, Tensor],
    deltas: Mapping[str, Delta],
    coefficients: Tensor,
    learnt: Mapping[str, Tensor] = NOTHING,
) -> Mapping[str, Tensor]:
    """All tensors of a bank. Where the deltas are made on demand, so are these."""
    kinds = {name: kinds_of(delta) for name, delta in without_values(deltas).items()}
    parts = [f"{kind}/{name}" for name in kinds for kind in kinds[name]]
    names = [*(f"origin/{name}" for name in origin), *parts, "coefficients", *learnt]

    # Types of values are not looked at here: that would make one.
    def find(origin: Mapping[str, Any], deltas: Mapping[str, Any], key: str) -> Tensor:
        kind, _, name = key.partition("/")
        if kind == "coefficients":
            return coefficients
        if is_learnt(key):
            return learnt[key]
        return origin[name] if kind == "origin" else part_of(deltas, key)

    if not isinstance(deltas, OnDemand):
        return {key: find(origin, deltas, key) for key in names}
    empty = functools.partial(find, without_values(origin), deltas.emptied)
    return OnDemand(names, functools.partial(find, origin, deltas), empty, row=deltas.row)


def kinds_of(delta: Delta) -> tuple[str, ...]:
    """What files call the tensors of a delta."""
    return ("U", "S", "V") if isinstance(delta, LowRank) else ("delta",)


def part_of(deltas: Mapping[str, Any], key: str) -> Tensor:
    """One tensor of a delta, by the name that files use; no other is read."""
    if isinstance(deltas, OnDemand) and deltas.part is not None:
        return deltas.part(key)
    kind, _, name = key.partition("/")
    delta = deltas[name]
    found: Tensor = delta if isinstance(delta, Tensor) else getattr(delta, kind)
    return found


def cut_deltas(deltas: Mapping[str, Delta], ranks: Mapping[str, int]) -> Mapping[str, Delta]:
    """Deltas with at most so many directions of the matrices that are named; factors are views."""

    def cut(deltas: Mapping[str, Any], name: str) -> Delta:
        delta = deltas[name]
        return delta.truncate(ranks.get(name, delta.rank)) if isinstance(delta, LowRank) else delta

    def shortened(key: str, value: Tensor) -> Tensor:
        kind, _, name = key.partition("/")
        return value if kind == "delta" or name not in ranks else value[..., : ranks[name]]

    def part(key: str) -> Tensor:
        return shortened(key, part_of(deltas, key))

    def row(key: str, i: int) -> Tensor:
        return shortened(key, deltas.row(key, i))  # type: ignore[attr-defined]

    has_rows = isinstance(deltas, OnDemand) and deltas.row is not None
    return mapping_like(deltas, cut, deltas, part, row if has_rows else None)


def origin_and_deltas(
    tensors: Mapping[str, Tensor], weights: Iterable[str], layers: Iterable[str]
) -> tuple[Mapping[str, Tensor], Mapping[str, Delta]]:
    """What `named_tensors` was made of: the origins of all weights, and the deltas of those in `layers`."""

    def delta(tensors: Mapping[str, Any], name: str) -> Delta:
        if f"U/{name}" in tensors:
            return LowRank(tensors[f"U/{name}"], tensors[f"S/{name}"], tensors[f"V/{name}"])
        return tensors[f"delta/{name}"]

    origin = mapping_like(weights, lambda tensors, name: tensors[f"origin/{name}"], tensors)
    row = tensors.row if isinstance(tensors, OnDemand) else None
    return origin, mapping_like(layers, delta, tensors, tensors.__getitem__, row)


def of_row(deltas: Mapping[str, Delta], row: int) -> Mapping[str, Delta]:
    """The deltas of one task alone; where they are made on demand, no other task's are read."""

    def sliced(deltas: Mapping[str, Any], name: str) -> Delta:
        delta = deltas[name]
        return (
            LowRank(*(one[row : row + 1] for one in tensors_of(delta)))
            if isinstance(delta, LowRank)
            else delta[row : row + 1]
        )

    if not isinstance(deltas, OnDemand) or deltas.row is None:
        return mapping_like(deltas, sliced, deltas, lambda key: part_of(deltas, key)[row : row + 1])
    read, empty = deltas.row, deltas.emptied

    def make(name: str) -> Delta:
        parts = [read(f"{kind}/{name}", row) for kind in kinds_of(empty[name])]
        return parts[0] if len(parts) == 1 else LowRank(*parts)

    return OnDemand(deltas, make, functools.partial(sliced, empty), lambda key: read(key, row))


def digest(about: object, names: Iterable[str], read: Callable[[str], Tensor]) -> tuple[str, dict[str, str]]:
    """A digest of what a bank is `about` and of all its values, without those that adaptation changes; and checksums of
    these values, by their names."""
    found, sums = hashlib.blake2b(digest_size=16), {}
    found.update(repr(about).encode())
    for name in names:
        if is_summed(name):
            value = read(name)
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(bytes_of(value))
            sums[name] = checksums(name, value)
    return found.hexdigest(), sums
