"""The k-th largest entries of vectors that no memory holds whole."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

# Bits of a floating-point number that one pass over the vectors settles.
DIGIT = 16


def kth_largest(
    read: Callable[[], Iterable[Float[Tensor, "T _"]]], k: int, tasks: int, dtype: torch.dtype
) -> Float[Tensor, " T"]:
    """The k-th largest |entry| of T vectors that come in parts, exactly, and never whole in memory.

    Floating-point numbers that are not negative are ordered like the integers of the same bits. Every pass counts how
    often each value of the next 16 bits occurs among the numbers that share the leading bits found so far: two passes
    for float32, four for float64.

    Args:
        read: the parts of all vectors, once more at every call.
        k: from 1 to the length of the vectors.
        tasks: T.
        dtype: float32 or float64, at least as precise as the parts.
    """
    integer, bits = (torch.int32, 32) if dtype == torch.float32 else (torch.int64, 64)
    prefix, left = torch.zeros(tasks, dtype=torch.int64), torch.full((tasks, 1), k)
    for shift in range(bits - DIGIT, -1, -DIGIT):
        counts = torch.zeros(tasks, 2**DIGIT, dtype=torch.int64)
        for part in read():
            for t, row in enumerate(part.to(dtype).abs().view(integer)):
                if shift < bits - DIGIT:
                    row = row[(row >> (shift + DIGIT)) == prefix[t]]
                counts[t] += torch.bincount((row >> shift) & (2**DIGIT - 1), minlength=2**DIGIT)
        above = counts.flip(1).cumsum(1)  # how many have the j-th digit from the top, or a higher one
        place = torch.searchsorted(above, left)
        digit = 2**DIGIT - 1 - place
        left = left - above.gather(1, place) + counts.gather(1, digit)
        prefix = (prefix << DIGIT) | digit.squeeze(1)
    return prefix.to(integer).view(dtype)
