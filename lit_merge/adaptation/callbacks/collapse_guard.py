"""CollapseGuard: sees without labels when adaptation does harm, and goes back to what was better."""

import warnings
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_merge.adaptation.callbacks.contradictions import refuse_second
from lit_merge.adaptation.coefficients import by_row
from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.choose.sample import Probe, Reading
from lit_merge.data import TaskData
from lit_merge.errors import MergeError, MergeWarning

Learnt = dict[str, Any]


class CollapseGuard(Callback):
    """Looks at a fixed set of unlabelled inputs every so many steps, and at what the merge predicts of them:

    - **balance**, the entropy of a task's mean prediction over log C: near 0 where one class takes everything;
    - **churn**, the share of predictions that differ from those at the last look;
    - **entropy**, which falls in a healthy fit too, and is reported with the others;
    - **agreement** with the task's own expert, the nearest to accuracy that can be had without labels.

    A fit in which the balance of a task falls below `balance` of what it was, or the churn goes above `churn` in
    mid-fit, is reported as collapsing. At its end, a fit whose agreement has fallen by more than `margin` from its best
    look has gone on for too long. `docs/adaptation.md` has the measurements behind the thresholds.

    It acts before the trainer's other callbacks, wherever it stands among them: they see what it keeps.

    Args:
        every_n_steps: optimiser steps between two looks; 0 switches the guard off, which `fit` has on.
        images: inputs of every task that are looked at.
        restore: stop a collapsing fit and go back to its last healthy coefficients; and end a fit that has gone on for
            too long at its best look. Otherwise only warn.
        balance: share of a task's balance at the start that is still healthy.
        churn: share of all predictions that may differ between two looks, after the first.
        margin: how far agreement, in [0, 1], may fall below its best.

    Raises:
        MergeError: an option out of range; a module that is no MergedModel, or data that is no TaskData.
    """

    def __init__(
        self,
        every_n_steps: int = 20,
        images: int = 64,
        restore: bool = True,
        balance: float = 0.8,
        churn: float = 0.35,
        margin: float = 0.015,
    ) -> None:
        if every_n_steps < 0 or images < 1 or not all(0 <= one <= 1 for one in (balance, churn, margin)):
            raise MergeError(
                f"CollapseGuard: every_n_steps={every_n_steps}: expected 0, off, or more; images={images}: at least 1; "
                f"balance={balance}, churn={churn}, margin={margin}: expected shares in [0, 1]"
            )
        self.every_n_steps, self.images, self.restore = every_n_steps, images, restore
        self.balance, self.churn, self.margin = balance, churn, margin
        self.looks: list[dict[str, Any]] = []
        """What was seen: step, and entropy, balance, agreement per task, churn."""
        self.messages: list[str] = []
        self.stopped = False
        self.back: dict[str, Any] | None = None
        """Where it has gone back to: `step`, the one `at` which it did, and `why`."""
        self._kept: dict[str, Learnt] = {}
        self._last: dict[str, Tensor] = {}

    @property
    def state_key(self) -> str:
        options = ("every_n_steps", "images", "restore", "balance", "churn", "margin")
        return self._generate_state_key(**{name: getattr(self, name) for name in options})

    def state_dict(self) -> dict[str, Any]:
        return {
            "looks": self.looks,
            "messages": self.messages,
            "stopped": self.stopped,
            "back": self.back,
            "kept": self._kept,
            "last": self._last,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.looks, self.stopped = state_dict["looks"], state_dict["stopped"]
        # Earlier checkpoints call them so, and some have no `back`.
        self.messages = state_dict["messages"] if "messages" in state_dict else state_dict["told"]
        self.back = state_dict.get("back")
        self._kept, self._last = state_dict["kept"], state_dict["last"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_second(self, trainer)
        # A list of its own: this one is walked through now.
        trainer.callbacks = [self, *(one for one in trainer.callbacks if one is not self)]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, MergedModel):
            raise MergeError(f"CollapseGuard works on a MergedModel, not on {type(pl_module).__name__}")
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, TaskData):
            raise MergeError("CollapseGuard draws its inputs from a TaskData: pass datamodule= to fit")
        if not self.every_n_steps:
            return
        self._probe = Probe.draw(pl_module.network, data, self.images)
        if pl_module.knows_experts and not data.mixed:
            self._probe.ask_experts(pl_module.expert_weights)
        if not self.looks:
            self._look(trainer, pl_module)
        # A kill between the stop and the end of the run does not undo it.
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        assert isinstance(pl_module, MergedModel)
        if not self.every_n_steps or self.stopped:
            return
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self.looks[-1]["step"]:
            self._look(trainer, pl_module)
        seen = self.looks[-1]
        pl_module.log("balance", min(seen["balance"].values()))
        if seen["mean_agreement"] is not None:
            pl_module.log("agreement", seen["mean_agreement"], prog_bar=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, MergedModel)
        if trainer.interrupted or not self.looks:
            return
        if self.stopped:
            # Whatever came after the stop, as a trainer's min_steps.
            recall(pl_module, self._kept["healthy"])
        else:
            self._end(trainer, pl_module)
        if self.back is not None:
            self._log(trainer, pl_module)

    def _end(self, trainer: Trainer, model: MergedModel) -> None:
        """Whether the fit has gone on for too long."""
        if trainer.global_step != self.looks[-1]["step"]:
            self._look(trainer, model)
        best = self._best()
        now = self.looks[-1]["mean_agreement"]
        if not self.stopped and best is not None and now < best["mean_agreement"] - self.margin:
            agreed = f"{100 * best['mean_agreement']:.1f} % after step {best['step']}, {100 * now:.1f} % at the end"
            why = f"the fit went on for too long: the merge agreed with the experts on {agreed}"
            self._tell(why)
            self._back(trainer, model, "best", why)

    def _log(self, trainer: Trainer, model: MergedModel) -> None:
        """A last line in the log: what was kept."""
        assert self.back is not None
        coefficients, step = model.coefficients().detach(), self.back["step"]
        means = {f"coefficient/{row}": value.mean().item() for row, value in by_row(model.tasks, coefficients).items()}
        seen = next(look for look in self.looks if look["step"] == step)
        kept = {"kept_step": step, "coefficient": coefficients.mean().item(), "balance": min(seen["balance"].values())}
        if seen["mean_agreement"] is not None:
            kept["agreement"] = seen["mean_agreement"]
        for logger in trainer.loggers:
            logger.log_metrics(kept | means, trainer.global_step)

    def _best(self) -> dict[str, Any] | None:
        known = [look for look in self.looks if look["healthy"] and look["mean_agreement"] is not None]
        return max(known, key=lambda look: look["mean_agreement"], default=None)

    @torch.no_grad()
    def _look(self, trainer: Trainer, model: MergedModel) -> None:
        weights = model.merged_weights()
        reading, classes = self._probe.read(weights), self._probe.classes
        churn = [(classes[task] != last).float().mean().item() for task, last in self._last.items()]
        look: dict[str, Any] = {"step": trainer.global_step, "churn": sum(churn) / len(churn) if churn else 0.0}
        signs = self._signs(reading, look["churn"])
        self._last = classes
        look |= {"healthy": not signs, "mean_agreement": reading.mean_agreement}
        self.looks.append(look | asdict(reading))
        if signs:
            why = f"step {trainer.global_step}: {'; '.join(signs)}: the fit collapses"
            self._tell(why)
            if self._back(trainer, model, "healthy", why):
                trainer.should_stop = self.stopped = True
            return
        self._kept["healthy"] = learnt(model, trainer.global_step)
        if self._best() is self.looks[-1]:
            self._kept["best"] = self._kept["healthy"]

    def _signs(self, now: Reading, churn: float) -> list[str]:
        """What speaks for a collapse, in words."""
        if not self.looks:
            return []
        found = []
        for task, value in now.balance.items():
            before, entropy = self.looks[0]["balance"][task], self.looks[0]["entropy"][task]
            if not value >= self.balance * before:
                found.append(
                    f"the classes predicted for {task} get fewer (balance {before:.2f} → {value:.2f}, "
                    f"entropy {entropy:.2f} → {now.entropy[task]:.2f})"
                )
        # Before the second look there is the first step towards the right scale, which changes a lot.
        if len(self.looks) > 1 and churn > self.churn:
            found.append(f"{churn:.0%} of the predictions changed within {self.every_n_steps} steps")
        return found

    def _tell(self, message: str) -> None:
        self.messages.append(message)
        warnings.warn(message, MergeWarning, stacklevel=2)

    def _back(self, trainer: Trainer, model: MergedModel, which: str, why: str) -> bool:
        """Goes back to the coefficients that were kept, where that is wanted."""
        if not self.restore:
            return False
        recall(model, kept := self._kept[which])
        self.back = {"step": kept["step"], "at": trainer.global_step, "why": why}
        self._tell(f"back to the coefficients of step {kept['step']}")
        return True


def gone_back(trainer: Trainer) -> dict[str, Any] | None:
    """What a trainer's guard has gone back to, see `CollapseGuard.back`; None where it has gone back to nothing."""
    guards = (one for one in trainer.callbacks if isinstance(one, CollapseGuard))  # type: ignore[attr-defined]
    return next((guard.back for guard in guards if guard.back is not None), None)


def learnt(model: MergedModel, step: int) -> Learnt:
    """A copy of what a fit learns. Not the active rank: a schedule of ranks ends where it is meant to."""
    state = {name: value.detach().clone() for name, value in model.learnt_state().items()}
    return {"step": step, "granularity": model.coefficients.granularity, "state": state}


def recall(model: MergedModel, kept: Learnt) -> None:
    """Makes coefficients and masks what they were."""
    model.load_state_dict(kept["state"], strict=False)
    model.coefficients.granularity = kept["granularity"]
