"""A module that minimises one objective after the other, some of which ask the experts of the tasks."""

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.adaptation.options import Adaptation
from lit_merge.adaptation.scoring import ScoredModule
from lit_merge.adaptation.stages import Stage, stage_at
from lit_merge.adaptation.step import Weights, compared
from lit_merge.adaptation.stored_bank import SMALL, fits
from lit_merge.adaptation.teachers import Ask, Teachers, ask_once, check_teachers, known_beforehand
from lit_merge.adaptation.training_checkpoint import digest
from lit_merge.bank.task_bank import TaskBank
from lit_merge.data import TaskData
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.experts.moments import fingerprint
from lit_merge.networks import Network
from lit_merge.objectives import Objective


class TaughtModule(ScoredModule):
    """Stages with their objectives, and the experts that these may ask: files, or what a bank holds of them.

    Args:
        frame: a bank, whose values may be elsewhere.
        network: encoder and heads.
        options: settled ones.
        experts: the models that were merged, where they are at hand.
    """

    def __init__(self, frame: TaskBank, network: Network, options: Adaptation, experts: Experts | None) -> None:
        super().__init__(network, frame.tasks)
        self._frame, self.options, self.experts = frame, options, experts
        self.stages = cast(tuple[Stage, ...], options.stages)
        self.stage_index = -1
        self.teachers: dict[bool, Teachers] = {}
        """Whether of features → what experts answer."""
        self.teachers_file: Path | None = None
        """Where a fit keeps what the experts predict of its inputs; set by a run."""
        self._held: dict[tuple[str, torch.device], Weights] = {}

    @property
    @abstractmethod
    def bank(self) -> TaskBank:
        """With values, on the module's device."""

    @property
    @abstractmethod
    def compute_dtype(self) -> torch.dtype:
        """Of weights and of the network."""

    def on_fit_end(self) -> None:
        self.teachers, self._held = {}, {}

    @property
    def objective(self) -> Objective:
        """What the present stage minimises."""
        return self.objectives[max(0, self.stage_index)]

    @property
    def objectives(self) -> list[Objective]:
        """What the stages minimise, one after the other."""
        return [stage.objective or cast(Objective, self.options.objective) for stage in self.stages]

    @property
    def turning(self) -> tuple[str, str] | None:
        """Names of the objective that another one takes over from, last of all, and of that one."""
        names = [type(one).__name__ for one in self.objectives]
        return next(((a, b) for a, b in reversed([*pairwise(names)]) if a != b), None)

    @property
    def total_steps(self) -> int:
        """Steps of all stages: what to give the trainer as `max_steps`."""
        return sum(stage.steps for stage in self.stages)

    @property
    def asks_experts(self) -> str:
        """The name of an objective that asks every expert about inputs of its own task; empty where there is none."""
        return next((type(one).__name__ for one in self.objectives if one.asks_experts), "")

    @property
    def knows_experts(self) -> bool:
        """Whether there is something to take for a task's expert."""
        return self.experts is not None or not self._frame.shared

    def expert_weights(self, task: str) -> Weights:
        """The task's expert; without experts, what the bank itself holds of it."""
        if self.experts is None:
            return self.bank.expert(task, self.compute_dtype, "canonical")
        if (task, self.device) in self._held:
            return self._held[task, self.device]
        read, device, dtype = self.experts.checkpoints[task].read, self.device, self.compute_dtype
        found = {name: read(name).to(device, dtype) for name in self.experts.shapes}
        # As a bank is: a step on a GPU would wait for the files of all experts.
        missing = sum(value.nbytes for value in found.values()) * (len(self._frame.tasks) - len(self._held))
        if missing <= SMALL or (device.type == "cuda" and fits(missing, device)):
            self._held[task, self.device] = found
        return found

    @torch.no_grad()
    def expert_logits(self, task: str, inputs: Tensor) -> Float[Tensor, "B C"]:
        """Of the task's expert."""
        return self.network(self.expert_weights(task), {task: inputs})[task]

    @torch.no_grad()
    def expert_features(self, task: str, inputs: Tensor) -> Float[Tensor, "B d"]:
        """What the encoder of the task's expert answers."""
        network = self.network
        return compared(network.holding(self.expert_weights(task), lambda: network.features({task: inputs}))[task])

    def check_teachers(self) -> None:
        """Raises MergeError where experts are asked about inputs of any task, or are not those of the bank."""
        if self.asks_experts and getattr(self.trainer.datamodule, "mixed", False):  # type: ignore[attr-defined]
            raise MergeError(
                f"{self.asks_experts} asks every expert about inputs of its own task, and the data mixes "
                "the tasks: take another objective"
            )
        if self.asks_experts and self.experts is not None:
            check_teachers(self._frame.recipe, self.experts)

    def ask_beforehand(self) -> None:
        """Asks the experts about all inputs that a fit will draw, where these are known."""
        data = getattr(self.trainer, "datamodule", None)
        if not self.asks_experts or not isinstance(data, TaskData) or not known_beforehand(data, self.trainer):
            return
        # Drawing nothing: a fit that finds them in a file goes on with the same numbers.
        files = () if self.experts is None else self.experts.checkpoints.values()
        asked = [fingerprint(one) for one in files] or [self._frame.fingerprint]
        asked.append(digest(list(self.network.heads.values())))
        every: dict[bool, tuple[Ask, list[int]]] = {}
        for step in range(self.trainer.max_steps):
            objective = self.objectives[stage_at(self.stages, step)]
            if objective.asks_experts:
                every.setdefault(objective.of_features, (self._ask(objective), []))[1].append(step)
        self.teachers = ask_once(every, data, self.device, asked, self.teachers_file)

    def expert_of_step(self) -> Callable[[str, Tensor], Tensor]:
        """Task and its inputs of this step → what its expert makes of them."""
        objective = self.objective
        # A stage that asks nobody draws inputs that nobody was asked about.
        if not objective.asks_experts or objective.of_features not in self.teachers:
            return self._ask(objective)
        known = self.teachers[objective.of_features].at(self.global_step)
        return lambda task, inputs: known[task].to(inputs.device)

    def _ask(self, objective: Objective) -> Ask:
        """What tells the objective about a task's expert."""
        return self.expert_features if objective.of_features else self.expert_logits
