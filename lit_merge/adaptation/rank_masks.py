"""AdaRank: learnt masks over the singular directions of a bank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_merge.bank.low_rank import LowRank, check_rank_ratio, rank_of
from lit_merge.bank.on_demand import without_values
from lit_merge.bank.task_bank import TaskBank
from lit_merge.errors import Finite, MergeError

# Logits start on either side of 0, near enough for a few hundred steps of 1e-3 to change sides.
START = 0.1


@dataclass(frozen=True)
class AdaRank(Finite):
    """Learn which singular directions are used, together with the coefficients (AdaRank, 2026).

    Args:
        rank_ratio: share of min(m, n) that is used at the start; the bank should hold more, best all
            (`rank_ratio: 1.0` of its method). The authors start CART from .16, .32 and .32 with λ 2.3, 2.8 and 2.4 for
            8, 14 and 20 tasks of CLIP ViT-B/32; task arithmetic from 1 with λ .3, .3 and .05.
        lr: Adam's learning rate for the mask logits.
    """

    rank_ratio: float = 0.16
    lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank_ratio(self.rank_ratio)
        if self.lr <= 0:
            raise MergeError(f"AdaRank: lr={self.lr}: expected a number above 0")


class RankMasks(nn.Module):
    """A logit per singular direction of every low-rank delta; a direction counts while its logit is above 0.

    The backward is straight-through, for kept and dropped directions alike: see `LowRank.weighted_sum`.

    Args:
        bank: whose low-rank deltas are masked.
        rank_ratio: the leading ⌊rank_ratio·min(m, n)⌋ directions of every matrix are kept at the start.

    Raises:
        MergeError: a bank without low-rank deltas.
    """

    def __init__(self, bank: TaskBank, rank_ratio: float) -> None:
        super().__init__()
        low_rank = {name: delta for name, delta in without_values(bank.deltas).items() if isinstance(delta, LowRank)}
        if not low_rank:
            method = bank.method.get("class_path", "this bank")
            raise MergeError(
                f"{method} has no low-rank deltas, so AdaRank has no directions to choose from: set its rank_ratio"
            )
        self.names: Sequence[str] = tuple(low_rank)
        self.logits = nn.ParameterList(
            nn.Parameter(start_logits(delta, rank_of(rank_ratio, *delta.shape[1:]))) for delta in low_rank.values()
        )

    def forward(self) -> dict[str, Tensor]:
        """name → logits (T or 1, r)."""
        return dict(zip(self.names, self.logits, strict=True))

    @torch.no_grad()
    def kept(self) -> Tensor:
        """Share of the bank's directions that are in use."""
        # Counted where the masks lie: asking for every number would wait for the device once a weight.
        used = torch.stack([(logits > 0).sum() for logits in self.logits]).sum()
        return used / sum(logits.numel() for logits in self.logits)

    @torch.no_grad()
    def select(self, bank: TaskBank) -> TaskBank:
        """The bank without the directions that are not in use."""
        return bank.select({name: logits[..., : bank.ranks[name]] > 0 for name, logits in self().items()})


def start_logits(delta: LowRank, kept: int) -> Tensor:
    """(T, r): +0.1 for the leading `kept` directions, −0.1 for the rest."""
    logits = torch.full(delta.S.shape, -START)
    logits[..., :kept] = START
    return logits
