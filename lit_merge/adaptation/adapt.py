"""The whole job in one call each: adapt a bank on unlabelled data, evaluate weights on labelled data."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from lit_merge.adaptation.callbacks import CollapseGuard, MergeProgress
from lit_merge.adaptation.merged_model import MergedModel
from lit_merge.adaptation.options import Adaptation, spelled_out
from lit_merge.adaptation.routing.prototypes import Prototypes
from lit_merge.adaptation.routing.routed_model import RoutedModel
from lit_merge.adaptation.routing.router import Route
from lit_merge.adaptation.scoring import Evaluator, ScoredModule
from lit_merge.adaptation.teachers import suiting
from lit_merge.adaptation.trainer import Trainer, passing_interrupts
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import canonical_weights
from lit_merge.choose.unlabelled import device_of
from lit_merge.console import plain_warnings
from lit_merge.data import TaskData, check_tasks
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.networks import Network, compute_dtype
from lit_merge.report.scores import Scores

# No logger, no files: what comes back is the result.
PLAIN: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


@spelled_out(Adaptation)
def adapt(
    bank: TaskBank,
    network: Network,
    data: TaskData,
    *,
    experts: Experts | None = None,
    guard: bool = True,
    accelerator: str = "auto",
    precision: Any = "32-true",
    progress: bool = True,
    **options: Any,
) -> TaskBank:
    """The bank with coefficients that were adapted on the unlabelled images of every task. No label is read.

    Args:
        bank: what is adapted, from its own coefficients.
        network: encoder and heads.
        data: where the unlabelled images come from.
        experts: the models that were merged, for the guard and for objectives that ask them; what the bank holds of
            every task by default.
        guard: watch for a collapse and for a fit that goes on for too long, and go back; see `CollapseGuard`.
        accelerator, precision: Lightning's.
        progress: show a bar.
        options: the arguments of `Adaptation`: objective, stages, bounds, …

    Raises:
        MergeError: a bank, a network and data that do not belong together; a bank without coefficients; what
            `Adaptation` refuses.
    """
    plain_warnings()
    check_tasks(data, bank.tasks)
    model = MergedModel(bank, network, experts=experts, **suiting(options, data))
    watching = guard and not data.online
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        max_steps=model.total_steps,
        limit_val_batches=0,
        enable_progress_bar=progress,
        callbacks=[*([CollapseGuard()] if watching else []), *([MergeProgress()] if progress else [])],
        **PLAIN,
    )
    with passing_interrupts():
        trainer.fit(model, datamodule=data)
    return model.to_bank()


def evaluate(
    weights: TaskBank | Mapping[str, Tensor],
    network: Network,
    data: TaskData,
    *,
    route: Route | None = None,
    prototypes: Prototypes | None = None,
    accelerator: str = "auto",
    progress: bool = False,
) -> Scores:
    """Task → accuracy (in [0, 1]) and mean entropy (nats) on the labelled test images.

    Args:
        weights: a bank, which is merged at its coefficients, or merged weights by name, in any naming.
        network: encoder and heads.
        data: whose test images are read.
        route: of a bank, choose weights input by input, as if nobody said which task an input is of; see `Router`.
        prototypes: by which tasks are distinguished; made of the data's unlabelled inputs by default.
        accelerator: Lightning's.
        progress: show a bar.

    Raises:
        MergeError: no labelled test images; weights that are not the network's; a route without a bank.
    """
    plain_warnings()
    if not data.has_test:
        raise MergeError("the data has no labelled test inputs to evaluate on")
    evaluator: ScoredModule
    if route is not None:
        if not isinstance(weights, TaskBank):
            raise MergeError(f"route={route} chooses among the tasks of a bank: give a TaskBank")
        network.to(device_of(accelerator))
        evaluator = RoutedModel(weights, network, prototypes or Prototypes.collect(weights, network, data), route)
    else:
        evaluator = _of_one_model(weights, network, data)
    callbacks: list[Callback] = [MergeProgress()] if progress else []
    trainer = Trainer(accelerator=accelerator, devices=1, enable_progress_bar=progress, callbacks=callbacks, **PLAIN)
    with passing_interrupts():
        trainer.test(evaluator, datamodule=data, verbose=False)
    return Scores(evaluator.scores)


def _of_one_model(weights: TaskBank | Mapping[str, Tensor], network: Network, data: TaskData) -> Evaluator:
    if isinstance(weights, TaskBank):
        merged = weights.merge(dtype=compute_dtype(weights.dtypes.values()), naming="canonical")
    else:
        found = canonical_weights(weights)
        wide = compute_dtype(value.dtype for value in found.values())
        merged = {name: value.to(wide if value.is_floating_point() else None) for name, value in found.items()}
    network.check({name: tuple(value.shape) for name, value in merged.items()})
    return Evaluator(network, data.tasks, lambda task: merged, "evaluating")
