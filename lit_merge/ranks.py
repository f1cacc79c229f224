"""How many singular directions are kept."""

from lit_merge.errors import MergeError


def rank_of(ratio: float, m: int, n: int) -> int:
    """k = max(1, ⌊ratio·min(m, n)⌋).

    >>> rank_of(0.08, 768, 256)
    20
    """
    # Rounding must not lose a direction where the product is whole: 0.07·100 is 7.000000000000001, 0.29·100 is 28.99….
    return max(1, int(ratio * min(m, n) + 1e-9))


def check_rank_ratio(ratio: float) -> float:
    """Raises MergeError outside (0, 1]."""
    if not 0 < ratio <= 1:
        raise MergeError(f"rank_ratio={ratio} is outside (0, 1]: 0.08 keeps 8 % of the directions")
    return ratio


def check_energy(share: float) -> float:
    """Raises MergeError outside (0, 1]."""
    if not 0 < share <= 1:
        raise MergeError(f"energy={share} is outside (0, 1]: 0.9 keeps 90 % of the squared singular values")
    return share
