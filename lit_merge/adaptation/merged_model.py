"""MergedModel: a task bank with learnable coefficients, adapted on unlabelled data."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_merge.adaptation.coefficients import learnable_coefficients
from lit_merge.adaptation.correction import SharedCorrection
from lit_merge.adaptation.options import Adaptation, spelled_out
from lit_merge.adaptation.random_state import fit_state, own_random_state, set_random_state
from lit_merge.adaptation.rank_masks import RankMasks
from lit_merge.adaptation.sharpness import SharpnessAware
from lit_merge.adaptation.stages import rates_at, stage_at
from lit_merge.adaptation.step import Weights, adaptation_step
from lit_merge.adaptation.stored_bank import Merging, StoredBank
from lit_merge.adaptation.taught_module import TaughtModule
from lit_merge.adaptation.trainer import check_precision
from lit_merge.adaptation.training_checkpoint import check_alike, seal
from lit_merge.bank.learnt import DIRECTIONS
from lit_merge.bank.learnt import cut as cut_learnt
from lit_merge.bank.low_rank import ranks_at
from lit_merge.bank.on_demand import mapping_like
from lit_merge.bank.task_bank import TaskBank
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.networks import Network, compute_dtype
from lit_merge.networks.compiling import check_compiler
from lit_merge.report.scores import mean_accuracy


class MergedModel(TaughtModule):
    """The merged weights as a function of the coefficients λ[task, weight], which are what is learnt; on demand also
    those of single directions, which directions are used, and a correction of the origin.

    A step takes one unlabelled batch of every task, builds the merged weights once, and minimises the mean over tasks
    of the objective (AdaMerging, arXiv 2310.02575, for any bank).

    Args:
        bank: origin, deltas and the coefficients to start from.
        network: encoder and heads.
        options: the arguments of `Adaptation`, by place or by name: objective, stages, bounds, …
        experts: the models that were merged, where they are at hand: for objectives and callbacks that ask them.

    Raises:
        MergeError: a bank whose weights are not the network's, a task without a head; AdaRank over a bank without
            low-rank deltas; what `Adaptation` refuses.
    """

    @spelled_out(Adaptation)
    def __init__(
        self, bank: TaskBank, network: Network, *options: Any, experts: Experts | None = None, **named: Any
    ) -> None:
        asked = Adaptation(*options, **named).settled(experts is not None and bool(bank.ranks))
        super().__init__(bank, network, asked, experts)
        if asked.gradient_checkpointing:
            network.checkpoint_gradients()
        if asked.compile:
            network.compile_encoder()
        network.check(bank.shapes)
        network.heads.mix(bank.tasks)
        self.stored = StoredBank(bank, asked.bank_device)
        self.coefficients = learnable_coefficients(bank, [stage.granularity for stage in self.stages], asked.bounds)
        self.masks = None if asked.ranks is None else RankMasks(bank, asked.ranks.rank_ratio)
        self.correction = None if asked.correction is None else SharedCorrection(bank, network, asked.correction.rank)
        self.rank_ratio = self.energy = 1.0
        self._ranks: dict[str, int] = {}
        self._weights: dict[str, Tensor] | None = None
        self._merging = Merging(self.compute_dtype)
        self._random: dict[str, Any] | None = None
        self.turn: dict[str, Tensor] | None = None
        """`coefficients` and what else was learnt when another objective took over; None without one."""
        # Checkpoints hold the coefficients only; the bank is a file of its own.
        self.strict_loading = False

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._frame.tasks

    @property
    def bank(self) -> TaskBank:
        """The bank at the active rank, with the coefficients it started from; its weights are merged on the module's
        device, wherever the factors lie."""
        bank = self.stored.open(self.device)
        return bank.cut(self._ranks) if self._ranks else bank

    def check_learnable(self) -> None:
        """Raises MergeError where the bank has no deltas, as that of weight averaging."""
        if not self._frame.layers:
            method = self._frame.method.get("class_path", "this bank")
            raise MergeError(f"{method} has no coefficients, so there is nothing to fit: use merge, test or export")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_precision(self.trainer, self.compute_dtype, self.options)
        device = self.trainer.strategy.root_device
        self.stored.settle(device)
        if self.options.compile:
            check_compiler(device)

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self._merging.forget()

    def on_fit_start(self) -> None:
        self.check_learnable()
        self.check_classes("adaptation")
        self.check_teachers()

    def set_rank(self, rank_ratio: float = 1.0, energy: float = 1.0) -> None:
        """Uses only the leading directions of every matrix from now on, as `TaskBank.truncate` takes them: factors are
        sliced, nothing is lost."""
        if (rank_ratio, energy) != (self.rank_ratio, self.energy):
            self._ranks = {} if rank_ratio == energy == 1 else ranks_at(self._frame.deltas, rank_ratio, energy)
            self.rank_ratio, self.energy = rank_ratio, energy

    @property
    def mean_rank(self) -> float:
        """Directions in use, per matrix and task."""
        ranks = self.bank.ranks.values()
        return sum(ranks) / max(1, len(ranks))

    def merged_weights(self) -> dict[str, Tensor]:
        """Canonical name → merged weight, in `compute_dtype`, differentiable in the coefficients."""
        # Small differences on large weights: not in the precision of the forward.
        with torch.autocast(self.device.type, enabled=False):
            logits = None if self.masks is None else self.masks()
            bank, values = self.bank, self.coefficients.values()
            return self._merging(bank, self.coefficients.by_weight(values), logits, self._learnt(bank, values))

    def _learnt(self, bank: TaskBank, values: Tensor) -> dict[str, Tensor]:
        """What is learnt next to the coefficients of weights, by the names in a bank; `values` are all coefficients."""
        directions = self.coefficients.by_direction(values)
        correction = bank.correction if self.correction is None else self.correction()
        return {f"{DIRECTIONS}/{name}": value for name, value in directions.items()} | correction

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of merged weights and of the network: float32, or float64 for float64 banks and with precision 64-true."""
        return compute_dtype([*self._frame.dtypes.values(), self.coefficients.offset.dtype])

    @torch.no_grad()
    def to_bank(self) -> TaskBank:
        """The bank at the active rank with the coefficients reached so far, on the CPU."""
        bank, values = self.bank, self.coefficients.values()
        reached = self.coefficients.by_weight(values).to(self._frame.coefficients.dtype, copy=True)
        bank = replace(bank, coefficients=reached, learnt=cut_learnt(self._learnt(bank, values), self._ranks))
        if self.masks is not None:
            bank = self.masks.select(bank)
        found = bank.tensors()
        tensors = mapping_like(found, lambda found, name: _on_cpu(found[name]), found)
        # Its own: the module goes on learning.
        learnt = {key: value.detach().to("cpu", copy=True) for key, value in bank.learnt.items()}
        return replace(replace(self._frame, learnt={}).with_tensors(tensors), learnt=learnt)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, C) of every task's inputs."""
        return self.network(self.merged_weights(), inputs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        weights = self.merged_weights()
        how = self.objective, self.expert_of_step(), self.options.microbatch
        step = adaptation_step(self.network, weights, batch, *how)
        if self.correction is not None and self.trainer.world_size > 1:
            # Processes wait for a gradient of everything, also of weights that the network does not run.
            step.loss = step.loss + 0 * sum(part.sum() for part in self.correction.parameters())
        self.log("loss", step.loss.detach(), prog_bar=True)
        self.log("coefficient", self.coefficients().mean(), prog_bar=True)
        if self.masks is not None:
            self.log("directions", self.masks.kept(), prog_bar=True)
        self.log_dict({f"loss/{task}": value for task, value in step.losses.items()})
        return {"loss": step.loss, "predictions": step.predictions}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        learnt = [[self.coefficients.offset], *(list(part.parameters()) for part, _ in self._others())]
        groups = [{"params": params, "lr": lr} for params, lr in zip(learnt, self._rates(), strict=True)]
        adam = torch.optim.Adam(groups)
        return SharpnessAware(adam, self.options.sharpness) if self.options.sharpness else adam

    def _others(self) -> list[tuple[torch.nn.Module, float]]:
        """What is learnt next to the coefficients, and Adam's rate for it."""
        ranks, correction = self.options.ranks, self.options.correction
        found = [] if self.masks is None or ranks is None else [(self.masks, ranks.lr)]
        return found + ([] if self.correction is None or correction is None else [(self.correction, correction.lr)])

    def _rates(self) -> list[float]:
        return rates_at(self.stages, 0 if self._trainer is None else self.global_step, [lr for _, lr in self._others()])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Enters the stage that this step belongs to."""
        index = stage_at(self.stages, self.global_step)
        stage, entered = self.stages[index], index != self.stage_index
        if entered:
            self._note_turn(index)
            self.stage_index = index
            self.coefficients.set_granularity(stage.granularity, stage.relative)
        for optimizer in self.trainer.optimizers if entered or stage.decay != "constant" else ():
            if entered:
                optimizer.state.pop(self.coefficients.offset, None)
            for group, lr in zip(optimizer.param_groups, self._rates(), strict=True):
                group["lr"] = lr

    @torch.no_grad()
    def _note_turn(self, index: int) -> None:
        """Keeps what the stages before this one have learnt, if they had another objective, of the whole bank."""
        before, now = self.objectives[max(0, index - 1)], self.objectives[index]
        if type(before) is not type(now) and self.masks is None and not self._ranks:
            values = self.coefficients.values()
            found = {"coefficients": self.coefficients.by_weight(values)} | self._learnt(self.bank, values)
            self.turn = {name: value.to("cpu", copy=True) for name, value in found.items()}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """A direction that is not in use keeps its coefficient: without a gradient, Adam's momentum would move it."""
        state, gradient = optimizer.state.get(self.coefficients.offset), self.coefficients.offset.grad
        if state and gradient is not None and self.coefficients.granularity == "direction":
            state["exp_avg"].mul_(gradient != 0)

    def weights_for(self, task: str) -> Weights:
        """The weights that all tasks share, merged once per evaluation."""
        if self._weights is None:
            self._weights = self.merged_weights()
        return self._weights

    def finish_scores(self, split: str) -> None:
        self._weights = None
        super().finish_scores(split)
        for task, score in self.scores.items():
            self.log_dict({f"{split}/{task}/accuracy": score.accuracy, f"{split}/{task}/entropy": score.entropy})
        if self.scores:
            self.log(f"{split}/accuracy", mean_accuracy(self.scores))

    def on_predict_epoch_end(self) -> None:
        self._weights = None

    def learnt_state(self) -> dict[str, Tensor]:
        """What a fit changes: of coefficients, masks and correction."""
        parts = ("coefficients.", "masks.", "correction.")
        return {name: v for name, v in self.state_dict().items() if name.startswith(parts)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is learnt (a few kB, and a correction), active rank, stage, and which bank they belong to."""
        checkpoint["state_dict"] = self.learnt_state()
        checkpoint["lit_merge"] = {
            "fingerprint": self._frame.fingerprint,
            "options": self.options.describe(),
            "rank_ratio": self.rank_ratio,
            "energy": self.energy,
            "stage_index": self.stage_index,
            "granularity": self.coefficients.granularity,
            "turn": self.turn,
        } | fit_state(self.trainer, self.device)
        seal(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises MergeError for a checkpoint of another bank or other data, or with AdaRank where this has none."""
        about = checkpoint.get("lit_merge", {})
        if about.get("fingerprint") != self._frame.fingerprint:
            raise MergeError("this checkpoint belongs to another bank: its coefficients mean nothing here")
        check_alike(checkpoint["state_dict"], self.learnt_state())
        # Checkpoints from before schedules by energy have none.
        self.set_rank(about["rank_ratio"], about.get("energy", 1.0))
        self.stage_index = about["stage_index"]
        self.coefficients.granularity, self.turn = about["granularity"], about.get("turn")
        self._random = None if self._trainer is None else own_random_state(about, self.trainer)

    def on_train_start(self) -> None:
        # Not before: what is set up in between may draw.
        if self._random is not None:
            set_random_state(self._random, self.device)
            self._random = None
        self.ask_beforehand()


def _on_cpu(value: Tensor) -> Tensor:
    return value if value.is_meta else value.detach().cpu()
