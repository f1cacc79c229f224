"""MergedModel: a task bank with learnable coefficients, adapted on unlabelled data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_merge.adaptation.coefficients import Coefficients
from lit_merge.adaptation.random_state import fit_state, own_random_state, set_random_state
from lit_merge.adaptation.rank_masks import AdaRank, RankMasks
from lit_merge.adaptation.sharpness import SharpnessAware
from lit_merge.adaptation.stages import TWO_STAGES, Stage, check_stages, stage_at
from lit_merge.adaptation.step import MicroBatch, Weights, adaptation_step, check_precision
from lit_merge.adaptation.stored_bank import BankDevice, Merging, StoredBank
from lit_merge.bank.on_demand import made
from lit_merge.bank.task_bank import TaskBank
from lit_merge.errors import MergeError, check_finite
from lit_merge.experts.experts import Experts
from lit_merge.networks import Network, compute_dtype
from lit_merge.networks.compiling import check_compiler
from lit_merge.objectives import Entropy, Objective
from lit_merge.report.scores import TaskMetrics, TaskScore, check_classes, mean_accuracy


class MergedModel(LightningModule):
    """The merged weights as a function of the coefficients λ[task, weight], which are all that is learnt.

    A step takes one unlabelled batch of every task, builds the merged weights once, and minimises the mean over tasks
    of the objective (AdaMerging, arXiv 2310.02575, for any bank).

    Args:
        bank: origin, deltas and the coefficients to start from.
        network: encoder and heads.
        objective: entropy by default.
        stages: what is learnt when: first one coefficient for the whole merge, then one per task and weight.
        bounds: (lower, upper) for the coefficients; AdaMerging clamps to [0, 1]. Off by default: CART's are above 1.
        ranks: learns which singular directions are used too.
        sharpness: how far from the coefficients the worst gradient is looked for (SAM); 0 is off.
        microbatch: `all` runs one forward over the batches of all tasks; `task` runs forward and backward task by task,
            so that the activations of one are in memory at a time, however many tasks there are.
        gradient_checkpointing: keep no activations inside the network's blocks, compute them again in the backward;
            with `microbatch: task`.
        bank_device: `auto` keeps the bank where the model is, if it fits there; `cpu` streams it weight by weight.
        compile: torch.compile of the network: minutes at first, less time a step.
        experts: the models that were merged, where they are at hand: for objectives and callbacks that ask them.

    Raises:
        MergeError: a bank whose weights are not the network's, a task without a head, no stage; AdaRank over a bank
            without low-rank deltas.
    """

    def __init__(
        self,
        bank: TaskBank,
        network: Network,
        objective: Objective | None = None,
        stages: Sequence[Stage] = TWO_STAGES,
        bounds: tuple[float, float] | None = None,
        ranks: AdaRank | None = None,
        sharpness: float = 0.0,
        microbatch: MicroBatch = "all",
        gradient_checkpointing: bool = False,
        experts: Experts | None = None,
        bank_device: BankDevice = "auto",
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_finite({"sharpness": sharpness, "bounds": bounds})
        if sharpness < 0:
            raise MergeError(f"sharpness={sharpness}: expected a number from 0, off, up")
        if gradient_checkpointing:
            if microbatch != "task":
                raise MergeError("gradient_checkpointing needs microbatch=task: its backward runs inside the network")
            network.checkpoint_gradients()
        if compile:
            network.compile_encoder()
        check_stages(stages)
        network.check({name: tuple(value.shape) for name, value in bank.origin.items()})
        network.heads.mix(bank.tasks)
        self._frame = bank
        self.stored = StoredBank(bank, bank_device)
        self.network = network
        self.objective = objective or Entropy()
        self.stages = tuple(stages)
        self.coefficients = Coefficients(bank.coefficients, bank.layers, stages[0].granularity, bounds)
        self.ranks, self.sharpness, self.microbatch, self.compiled = ranks, sharpness, microbatch, compile
        self.masks = None if ranks is None else RankMasks(bank, ranks.rank_ratio)
        self.experts = experts
        self.metrics = TaskMetrics(bank.tasks)
        self.label_rows: dict[str, Tensor] = {}
        self.rank_ratio = self.energy = 1.0
        self._ranks: dict[str, int] = {}
        self.stage_index = -1
        self.scores: dict[str, TaskScore] = {}
        self._weights: dict[str, Tensor] | None = None
        self._merging = Merging(self.compute_dtype)
        self._random: dict[str, Any] | None = None
        # Checkpoints hold the coefficients only; the bank is a file of its own.
        self.strict_loading = False

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._frame.tasks

    @property
    def total_steps(self) -> int:
        """Steps of all stages: what to give the trainer as `max_steps`."""
        return sum(stage.steps for stage in self.stages)

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
        check_precision(self.trainer, self.compute_dtype, self.microbatch, self.sharpness)
        device = self.trainer.strategy.root_device
        self.stored.settle(device)
        if self.compiled:
            check_compiler(device)

    def on_fit_end(self) -> None:
        self._merging.forget()

    def on_fit_start(self) -> None:
        self.check_learnable()
        check_classes(self, self.network, "adaptation")
        if self.objective.asks_experts and getattr(self.trainer.datamodule, "mixed", False):  # type: ignore[attr-defined]
            raise MergeError(
                f"{type(self.objective).__name__} asks every expert about inputs of its own task, and the data mixes "
                "the tasks: take another objective"
            )

    def set_rank(self, rank_ratio: float = 1.0, energy: float = 1.0) -> None:
        """Uses only the leading directions of every matrix from now on, as `TaskBank.truncate` takes them: factors are
        sliced, nothing is lost."""
        if (rank_ratio, energy) != (self.rank_ratio, self.energy):
            self._ranks = {} if rank_ratio == energy == 1 else self._frame.ranks_at(rank_ratio, energy)
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
            return self._merging(self.bank, self.coefficients(), logits)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of merged weights and of the network: float32, or float64 for float64 banks and with precision 64-true."""
        return compute_dtype([*self._frame.dtypes.values(), self.coefficients.offset.dtype])

    @torch.no_grad()
    def to_bank(self) -> TaskBank:
        """The bank at the active rank with the coefficients reached so far, on the CPU."""
        bank = self.bank if self.masks is None else self.masks.select(self.bank)
        found = bank.tensors()
        tensors = made(found, lambda name: found[name].detach().cpu(), found)
        reached = self.coefficients().detach().to("cpu", self._frame.coefficients.dtype, copy=True)
        return replace(self._frame.with_tensors(tensors), coefficients=reached)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits (B, C) of every task's inputs."""
        return self.network(self.merged_weights(), inputs)

    @property
    def knows_experts(self) -> bool:
        """Whether there is something to take for a task's expert."""
        return self.experts is not None or not self._frame.shared

    def expert_weights(self, task: str) -> Weights:
        """The task's expert; without experts, what the bank itself holds of it."""
        if self.experts is None:
            return self.bank.expert(task, self.compute_dtype, "canonical")
        read, device, dtype = self.experts.checkpoints[task].read, self.device, self.compute_dtype
        return {name: read(name).to(device, dtype) for name in self.experts.shapes}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        weights = self.merged_weights()
        step = adaptation_step(self.network, weights, batch, self.objective, self.expert_weights, self.microbatch)
        self.log("loss", step.loss.detach(), prog_bar=True)
        self.log("coefficient", self.coefficients().mean(), prog_bar=True)
        if self.masks is not None:
            self.log("directions", self.masks.kept(), prog_bar=True)
        self.log_dict({f"loss/{task}": value for task, value in step.losses.items()})
        return {"loss": step.loss, "predictions": step.predictions}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        learnt = [[self.coefficients.offset], *([] if self.masks is None else [list(self.masks.parameters())])]
        groups = [{"params": params, "lr": lr} for params, lr in zip(learnt, self._rates(0), strict=True)]
        adam = torch.optim.Adam(groups)
        return SharpnessAware(adam, self.sharpness) if self.sharpness else adam

    def _rates(self, stage: int) -> list[float]:
        """Learning rates of the coefficients, and of the masks where there are any."""
        if self.ranks is None:
            return [self.stages[stage].lr]
        # A merge that is too small wants every direction it can have: ranks wait until the scale is found.
        waits = self.stages[stage].granularity == "tied" and stage + 1 < len(self.stages)
        return [self.stages[stage].lr, 0.0 if waits else self.ranks.lr]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Enters the stage that this step belongs to."""
        index = stage_at(self.stages, self.global_step)
        if index != self.stage_index:
            self.stage_index = index
            self.coefficients.set_granularity(self.stages[index].granularity)
            for optimizer in self.trainer.optimizers:
                optimizer.state.pop(self.coefficients.offset, None)
                for group, lr in zip(optimizer.param_groups, self._rates(index), strict=True):
                    group["lr"] = lr

    def _logits(self, batch: dict[str, Any]) -> Tensor:
        """Logits of one labelled batch, with weights that are merged once per evaluation."""
        if self._weights is None:
            self._weights = self.merged_weights()
        return self.network.evaluate(self._weights, batch)

    def on_validation_start(self) -> None:
        self.label_rows = check_classes(self, self.network, "validation")

    def on_test_start(self) -> None:
        self.label_rows = check_classes(self, self.network, "test")

    def on_predict_start(self) -> None:
        check_classes(self, self.network, "adaptation")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.metrics.update(batch["task"], self._logits(batch), self.network.rows(batch, self.label_rows))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The five most probable classes of every input, fewer where there are fewer."""
        logits = self._logits(batch)
        p, classes = logits.softmax(-1).topk(min(5, logits.shape[-1]))
        return {"task": batch["task"], "indices": batch["indices"], "classes": classes, "probabilities": p}

    def on_predict_epoch_end(self) -> None:
        self._weights = None

    def on_validation_epoch_end(self) -> None:
        self._log_scores("validation")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        self._weights = None
        self.scores = self.metrics.scores()
        for task, score in self.scores.items():
            self.log_dict({f"{split}/{task}/accuracy": score.accuracy, f"{split}/{task}/entropy": score.entropy})
        if self.scores:
            self.log(f"{split}/accuracy", mean_accuracy(self.scores))

    def learnt_state(self) -> dict[str, Tensor]:
        """What a fit changes: of coefficients and masks."""
        return {name: v for name, v in self.state_dict().items() if name.startswith(("coefficients.", "masks."))}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A few kB: coefficients, masks, active rank, stage, and which bank they belong to."""
        checkpoint["state_dict"] = self.learnt_state()
        checkpoint["lit_merge"] = {
            "fingerprint": self._frame.fingerprint,
            "rank_ratio": self.rank_ratio,
            "energy": self.energy,
            "stage_index": self.stage_index,
            "granularity": self.coefficients.granularity,
        } | fit_state(self.trainer, self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises MergeError for a checkpoint of another bank or other data, or with AdaRank where this has none."""
        about = checkpoint.get("lit_merge", {})
        if about.get("fingerprint") != self._frame.fingerprint:
            raise MergeError("this checkpoint belongs to another bank: its coefficients mean nothing here")
        if any(name.startswith("masks.") for name in checkpoint["state_dict"]) != (self.masks is not None):
            raise MergeError("this checkpoint is of a fit with other ranks: AdaRank must be on in both, or in neither")
        # Checkpoints from before schedules by energy have none.
        self.set_rank(about["rank_ratio"], about.get("energy", 1.0))
        self.stage_index = about["stage_index"]
        self.coefficients.granularity = about["granularity"]
        self._random = None if self._trainer is None else own_random_state(about, self.trainer)

    def on_train_start(self) -> None:
        # Not before: what is set up in between may draw.
        if self._random is not None:
            set_random_state(self._random, self.device)
            self._random = None
