"""The tensors of a bank by the names that files use: `origin/…`, `U/…`, `S/…`, `V/…`, `delta/…`, `coefficients`,
and those of `bank/learnt.py`."""

import hashlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from lit_merge.bank.learnt import NOTHING, is_learnt
from lit_merge.bank.low_rank import Delta, LowRank
from lit_merge.bank.on_demand import mapping_like


def named_tensors(
    origin: Mapping[str, Tensor],
    deltas: Mapping[str, Delta],
    coefficients: Tensor,
    learnt: Mapping[str, Tensor] = NOTHING,
) -> Mapping[str, Tensor]:
    """All tensors of a bank. Where the deltas are made on demand, so are these."""
    kinds = {name: ("U", "S", "V") if isinstance(delta, LowRank) else ("delta",) for name, delta in deltas.items()}

    def find(key: str) -> Tensor:
        kind, _, name = key.partition("/")
        if kind == "coefficients":
            return coefficients
        if kind == "origin":
            return origin[name]
        if is_learnt(key):
            return learnt[key]
        delta = deltas[name]
        return delta if isinstance(delta, Tensor) else getattr(delta, kind)

    parts = [f"{kind}/{name}" for name in kinds for kind in kinds[name]]
    return mapping_like([*(f"origin/{name}" for name in origin), *parts, "coefficients", *learnt], find, deltas)


def origin_and_deltas(
    tensors: Mapping[str, Tensor], weights: Iterable[str], layers: Iterable[str]
) -> tuple[Mapping[str, Tensor], Mapping[str, Delta]]:
    """What `named_tensors` was made of: the origins of all weights, and the deltas of those in `layers`."""

    def delta(name: str) -> Delta:
        if f"U/{name}" in tensors:
            return LowRank(tensors[f"U/{name}"], tensors[f"S/{name}"], tensors[f"V/{name}"])
        return tensors[f"delta/{name}"]

    origin = mapping_like([*weights], lambda name: tensors[f"origin/{name}"], tensors)
    return origin, mapping_like([*layers], delta, tensors)


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
