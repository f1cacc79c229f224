"""RankSchedule: the rank of the merge as a function of the step or the epoch."""

import bisect
import math
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_merge.errors import MergeError
from lit_merge.merged_model import MergedModel
from lit_merge.task_bank import check_rank_ratio


def rank_ratio_at(ratios: dict[int, float], position: int, shape: str) -> float:
    """The ratio at a step or epoch: that of the last milestone (`constant`), or on the way to the next one.

    >>> rank_ratio_at({0: 0.4, 10: 0.2}, 5, "linear")
    0.30000000000000004
    """
    milestones = sorted(ratios)
    i = bisect.bisect_right(milestones, position) - 1
    low = ratios[milestones[max(i, 0)]]
    if i < 0 or i + 1 == len(milestones) or shape == "constant":
        return low
    share = (position - milestones[i]) / (milestones[i + 1] - milestones[i])
    if shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return low + (ratios[milestones[i + 1]] - low) * share


class RankSchedule(Callback):
    """Changes the active rank in mid-fit. Factors are sliced, so that optimiser state and resume stay valid.

    Args:
        ratios: {step or epoch: share of min(m, n)}; what is above the bank's own rank changes nothing.
        unit: what the keys count.
        shape: `constant` between milestones, `linear` or `cosine` from each to the next.

    Raises:
        MergeError: no milestone, a negative one, a ratio outside (0, 1].
    """

    def __init__(
        self,
        ratios: dict[int, float],
        unit: Literal["step", "epoch"] = "step",
        shape: Literal["constant", "linear", "cosine"] = "constant",
    ) -> None:
        if not ratios or min(ratios) < 0:
            raise MergeError(f"RankSchedule: ratios={ratios}: expected {{step: ratio}} with steps ≥ 0")
        for ratio in ratios.values():
            check_rank_ratio(ratio)
        self.ratios, self.unit, self.shape = dict(ratios), unit, shape

    @property
    def state_key(self) -> str:
        return self._generate_state_key(ratios=self.ratios, unit=self.unit, shape=self.shape)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not isinstance(pl_module, MergedModel):
            raise MergeError(f"RankSchedule works on a MergedModel, not on {type(pl_module).__name__}")
        position = trainer.global_step if self.unit == "step" else trainer.current_epoch
        pl_module.set_rank_ratio(rank_ratio_at(self.ratios, position, self.shape))
        pl_module.log("rank_ratio", pl_module.rank_ratio, prog_bar=True)
