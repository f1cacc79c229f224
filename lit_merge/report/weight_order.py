"""The order in which weights are shown."""

import re
from collections.abc import Sequence

from lit_merge.experts.matrices import block_of


def display_order(layers: Sequence[str]) -> list[int]:
    """Positions of the weights as they are drawn: those outside blocks, then block by block in the order of their
    numbers. Files sort names by letters, 10 before 2."""
    blocks = [block_of(name) for name in layers]
    return sorted(range(len(layers)), key=lambda i: [_number(part) for part in re.split(r"(\d+)", blocks[i])])


def _number(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)
