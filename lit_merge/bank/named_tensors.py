"""The tensors of a bank by the names that files use: `origin/…`, `U/…`, `S/…`, `V/…`, `delta/…`, `coefficients`,
and those of `bank/learnt.py`."""

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lit_merge.bank.learnt import NOTHING, is_learnt
from lit_merge.bank.low_rank import Delta, LowRank
from lit_merge.bank.on_demand import OnDemand, mapping_like, without_values


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
    return OnDemand(names, functools.partial(find, origin, deltas), empty)


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

    def part(key: str) -> Tensor:
        kind, _, name = key.partition("/")
        found = part_of(deltas, key)
        return found if kind == "delta" or name not in ranks else found[..., : ranks[name]]

    return mapping_like(deltas, cut, deltas, part)


def origin_and_deltas(
    tensors: Mapping[str, Tensor], weights: Iterable[str], layers: Iterable[str]
) -> tuple[Mapping[str, Tensor], Mapping[str, Delta]]:
    """What `named_tensors` was made of: the origins of all weights, and the deltas of those in `layers`."""

    def delta(tensors: Mapping[str, Any], name: str) -> Delta:
        if f"U/{name}" in tensors:
            return LowRank(tensors[f"U/{name}"], tensors[f"S/{name}"], tensors[f"V/{name}"])
        return tensors[f"delta/{name}"]

    origin = mapping_like(weights, lambda tensors, name: tensors[f"origin/{name}"], tensors)
    return origin, mapping_like(layers, delta, tensors, tensors.__getitem__)


def digest(about: object, names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """A digest of what a bank is `about` and of all its values, without those that adaptation changes."""
    found = hashlib.blake2b(digest_size=16)
    found.update(repr(about).encode())
    for name in names:
        if name != "coefficients" and not is_learnt(name):
            value = read(name)
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
