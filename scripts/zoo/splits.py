"""Deals fonts to training, validation, adaptation and test: one split a font, whatever the script.

Two fonts are related when they look alike in some script or are of one family; related fonts never stand in
different splits. Unrelated fonts ("heads") are dealt; every other font follows the heads it is related to, and is
dropped where those are in two splits. (Joining relations of relations instead puts half of all fonts into one group.)
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

SPLITS = ("training", "validation", "adaptation", "test")
SHARES = np.array([0.58, 0.12, 0.14, 0.16])
DROPPED = -1
_ALIKE = 0.93
_LEAST = np.array([4, 2, 2, 3])
_STARTS = 4
_RARE = 100
_LOSS = 3.0


def alike(masters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which fonts of one script, masters (F, C, 48, 48), have renderings that correlate above .93: (F, F)."""
    flat = F.avg_pool2d(torch.tensor(masters).float(), 4).flatten(2)
    rows = F.normalize((flat - flat.mean((0, 2), keepdim=True)).flatten(1), dim=1)
    return (rows @ rows.T > _ALIKE).numpy()


def split_fonts(related: NDArray[np.bool_], scripts: NDArray[np.bool_], seed: int = 0) -> NDArray[np.int64]:
    """The split (F,) of every font, given relations (F, F) and which scripts it has (F, S); -1 for the dropped."""
    order = np.random.default_rng(seed).permutation(len(related))
    # Heads are never dropped, so fonts of scripts that have few come first, of those the ones with few relations:
    # that leaves the most unrelated fonts, so the most to deal.
    rare = scripts[:, scripts.sum(0) < _RARE].any(1)
    order = order[np.lexsort((related[order].sum(1), ~rare[order]))]
    heads: list[int] = []
    for font in order:
        if not related[font, heads].any():
            heads.append(int(font))
    dealt = deal(related[:, heads], scripts, np.array(heads), seed)
    split = np.full(len(related), DROPPED)
    split[heads] = dealt
    placed = np.zeros(len(related), bool)
    placed[heads] = True
    for font in order[~placed[order]]:
        where = np.unique(split[related[font] & placed])
        if len(where) == 1:
            split[font], placed[font] = where[0], True
    return split


def deal(
    follows: NDArray[np.bool_], scripts: NDArray[np.bool_], heads: NDArray[np.int64], seed: int = 0
) -> NDArray[np.int64]:
    """The split (H,) of every head, given which heads each font is related to (F, H) and its scripts (F, S).

    Each start deals the heads one by one, those with many followers first, then moves single ones while that
    helps; the best start wins.
    """
    table = _Deal(follows, scripts, heads)
    best, least = np.zeros(len(heads), np.int64), np.inf
    for start in range(_STARTS):
        order = np.random.default_rng([seed, start]).permutation(len(heads))
        order = order[np.argsort(-follows[:, order].sum(0), kind="stable")]
        split = np.random.default_rng([seed, start, 1]).choice(len(SPLITS), len(heads), p=SHARES)
        while table.sweep(split, order):
            pass
        if (cost := table.cost(split)) < least:
            best, least = split, cost
    return best


class _Deal:
    """What a deal of the heads is worth.

    Every script counts alike; all fonts and the heads alone (so that no split is one face and its copies) should
    each come near the shares, few fonts should be lost, and a script short of heads in some split costs most.
    """

    def __init__(self, follows: NDArray[np.bool_], scripts: NDArray[np.bool_], heads: NDArray[np.int64]) -> None:
        self._follows = follows.astype(np.float32)
        self._total = self._follows.sum(1, keepdims=True)
        self._scripts = scripts.astype(np.float32)
        self._heads = self._scripts[heads]
        self._wanted = SHARES[:, None] * np.maximum(self._scripts.sum(0), 1)
        self._wanted_heads = SHARES[:, None] * np.maximum(self._heads.sum(0), 1)

    def cost(self, split: NDArray[np.int64]) -> float:
        """The price of a deal (H,)."""
        dealt = np.eye(len(SPLITS), dtype=np.float32)[split]
        kept = (self._follows @ dealt == self._total).astype(np.float32)
        fonts, heads = kept.T @ self._scripts, dealt.T @ self._heads
        distance = (fonts / self._wanted - 1) ** 2 + (heads / self._wanted_heads - 1) ** 2
        short = np.maximum(_LEAST[:, None] - heads, 0)
        lost = 1 - fonts.sum(0) / np.maximum(self._scripts.sum(0), 1)
        return float((distance + 3.0 * short**2).sum() + _LOSS * lost.sum())

    def sweep(self, split: NDArray[np.int64], order: NDArray[np.int64]) -> bool:
        """Puts every head where it costs least, in place; whether any moved."""
        before = split.copy()
        for head in order:
            costs = []
            for part in range(len(SPLITS)):
                split[head] = part
                costs.append(self.cost(split))
            # Stays where it is on a tie, so that sweeping ends.
            split[head] = before[head] if costs[before[head]] <= min(costs) + 1e-6 else int(np.argmin(costs))
        return bool((before != split).any())


def fonts_per_split(scripts: NDArray[np.bool_], split: NDArray[np.int64]) -> NDArray[np.int64]:
    """Fonts (4, S) in every split and script, from the scripts (F, S) and the split (F,) of every font."""
    return np.stack([scripts[split == part].sum(0) for part in range(len(SPLITS))])


def missing(fonts: NDArray[np.int64], scripts: Sequence[str], needed: set[str]) -> list[str]:
    """What to say of every needed script that has no font, fonts (4, S), in some split."""
    return [
        f"{script} has no {SPLITS[part]} font"
        for column, script in enumerate(scripts)
        for part in range(len(SPLITS))
        if script in needed and not fonts[part, column]
    ]
