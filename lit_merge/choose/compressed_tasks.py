"""What a bank of limited size keeps of every task, and what its error is measured on, by inputs of the tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lit_merge.bank.task_bank import TaskBank
from lit_merge.choose.activations import bank_moments
from lit_merge.choose.sample import Probe
from lit_merge.data import TaskData
from lit_merge.data.task_data import check_tasks
from lit_merge.errors import MergeError
from lit_merge.networks import Network


@dataclass(frozen=True)
class TaskKept:
    """One task, its name known, before and after.

    Attributes:
        agreement: share of inputs on which both predict the same.
        before, after: accuracy of the bank and of what is stored of it; None without labels.
    """

    agreement: float
    before: float | None = None
    after: float | None = None


def moments_of(bank: TaskBank, network: Network, data: TaskData, folder: Path) -> dict[str, Mapping[str, Tensor]]:
    """`bank_moments` of the data's unlabelled inputs.

    Raises:
        MergeError: data of other tasks, or that mixes them; no unlabelled inputs.
    """
    check_tasks(data, bank.tasks)
    if data.mixed:
        raise MergeError("metric=features looks at inputs of every task by itself, and the data mixes them")
    data.suit(network)
    return bank_moments(bank, network, data.unlabelled(), folder, seed=data.seed)


def tasks_kept(bank: TaskBank, stored: TaskBank, network: Network, data: TaskData) -> dict[str, TaskKept]:
    """How every task does on the data's test inputs, or, where there are none, on unlabelled ones.

    Raises:
        MergeError: data of other tasks, or that mixes them; weights that are not the network's.
    """
    check_tasks(data, bank.tasks)
    network.check(bank.shapes)
    probe = Probe.labelled(network, data, "test") if data.has_test else Probe.draw(network, data, 200)
    if probe.inputs.keys() != set(bank.tasks):
        raise MergeError("the data mixes the tasks: without labels nobody knows which input is of which task")
    predicted = []
    for one in (bank, stored):
        probe.ask_experts(lambda task, one=one: one.expert(task, torch.float32, "canonical"))  # type: ignore[misc]
        predicted.append({task: rows.cpu() for task, rows in probe.predictions.items()})
    found = {}
    for task in bank.tasks:
        before, after = predicted[0][task], predicted[1][task]
        labels = probe.labels.get(task)
        right = [None if labels is None else _share(rows, labels.cpu()) for rows in (before, after)]
        found[task] = TaskKept(_share(before, after), *right)
    return found


def _share(rows: Tensor, others: Tensor) -> float:
    return (rows == others).double().mean().item()
