"""RankSchedule: the ranks of the merge as a function of the step or the epoch."""

import bisect
import math
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_merge.adaptation.callbacks.contradictions import refuse_second
from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.bank.low_rank import check_energy, check_rank_ratio
from lit_merge.errors import MergeError, check_choice

Unit = Literal["step", "epoch"]
Shape = Literal["constant", "linear", "cosine"]


def share_at(shares: dict[int, float], position: int, shape: str) -> float:
    """The share at a step or epoch: that of the last milestone (`constant`), or on the way to the next one.

    >>> share_at({0: 0.4, 10: 0.2}, 5, "linear")
    0.30000000000000004
    """
    milestones = sorted(shares)
    i = bisect.bisect_right(milestones, position) - 1
    low = shares[milestones[max(i, 0)]]
    if i < 0 or i + 1 == len(milestones) or shape == "constant":
        return low
    share = (position - milestones[i]) / (milestones[i + 1] - milestones[i])
    if shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return low + (shares[milestones[i + 1]] - low) * share


class RankSchedule(Callback):
    """Changes the active rank in mid-fit. Factors are sliced, so that optimiser state and resume stay valid.

    Args:
        ratios: {step or epoch: share of min(m, n)}; what is above the bank's own rank changes nothing.
        energies: instead, {step or epoch: share of the squared singular values that the bank has}: every matrix gets a
            rank of its own, as `TaskBank.truncate` finds it.
        unit: what the keys count.
        shape: `constant` between milestones, `linear` or `cosine` from each to the next.

    Raises:
        MergeError: neither or both, a negative milestone, a share outside (0, 1]; before the fit: a second of these,
            or a milestone after its end.
    """

    def __init__(
        self,
        ratios: dict[int, float] | None = None,
        energies: dict[int, float] | None = None,
        unit: Unit = "step",
        shape: Shape = "constant",
    ) -> None:
        check_choice("RankSchedule: unit", unit, Unit)
        check_choice("RankSchedule: shape", shape, Shape)
        if bool(ratios) == bool(energies):
            raise MergeError("RankSchedule: expected ratios or energies, either as {step: share}, and not both")
        self.quantity = "rank_ratio" if ratios else "energy"
        self.shares = dict(ratios or energies or {})
        if min(self.shares) < 0:
            raise MergeError(f"RankSchedule: {self.quantity} at {min(self.shares)}: expected steps or epochs from 0 up")
        for share in self.shares.values():
            (check_rank_ratio if ratios else check_energy)(share)
        self.unit, self.shape = unit, shape

    @property
    def state_key(self) -> str:
        return self._generate_state_key(**{self.quantity: self.shares, "unit": self.unit, "shape": self.shape})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_second(self, trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = max(self.shares)
        end = trainer.max_steps if self.unit == "step" else trainer.max_epochs
        if end is not None and 0 <= end < last:
            raise MergeError(
                f"RankSchedule names {self.unit} {last}, which is never reached: the fit ends after {end}; end the "
                "schedule sooner, or the fit later (model.stages, trainer.max_steps)"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not isinstance(pl_module, MergedModel):
            raise MergeError(f"RankSchedule works on a MergedModel, not on {type(pl_module).__name__}")
        position = trainer.global_step if self.unit == "step" else trainer.current_epoch
        share = share_at(self.shares, position, self.shape)
        pl_module.set_rank(**{self.quantity: share})
        pl_module.log(self.quantity, share, prog_bar=True)
        pl_module.log("rank", pl_module.mean_rank, prog_bar=True)
