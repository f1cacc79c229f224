"""Kinds of layers: the same weight of every block."""

import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_WEIGHT = re.compile(r"[._]weight$")


def kinds_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Kind → names, in the order of the names: what follows a block's number is the kind of its weights.

    >>> kinds_of(["blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight", "proj"])
    {'attn.qkv': ['blocks.0.attn.qkv.weight', 'blocks.1.attn.qkv.weight'], 'proj': ['proj']}
    """
    masked: dict[str, list[str]] = defaultdict(list)
    for name in names:
        masked[_WEIGHT.sub("", _NUMBER.sub("*", name))].append(name)
    short = {mask: mask.rpartition("*.")[2] for mask in masked}
    # Two towers of one model may name their weights alike: there the whole name stays.
    alike = list(short.values())
    return {(short[mask] if alike.count(short[mask]) == 1 else mask): found for mask, found in masked.items()}
