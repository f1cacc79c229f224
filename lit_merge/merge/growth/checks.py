"""What a bank must be to gain or lose a task, and an expert to become one of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lit_merge import methods
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Checkpoint, Source
from lit_merge.data.class_names import MIXED
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.merge.growth.rows import dense_of
from lit_merge.methods import CART, MergeMethod, TaskArithmetic, TSVCompress, WeightAveraging

# Below this cosine with the origin an expert is of another base: fine-tuning changes weights by far less.
LEAST_COSINE = 0.5
# How far the expert of a task may be from the bank's own of it, along that one's directions.
LARGEST_CHANGE = 0.2


def check_task_name(name: str) -> None:
    """Raises MergeError for what is no name of a task: empty, unprintable, or with a path in it."""
    if not name or name != name.strip() or not name.isprintable() or {*"/\\"} & {*name} or name in (".", "..", MIXED):
        raise MergeError(f"{name!r} is no name of a task: expected text without / and \\, other than . .. and {MIXED}")


def method_of(bank: TaskBank) -> MergeMethod:
    """The method that made a bank, which can take a task more or less.

    Raises:
        MergeError: another one.
    """
    name, transform = str(bank.method.get("class_path")), bank.method.get("transform")
    kind = getattr(methods, name, None)
    if isinstance(transform, Mapping):
        raise MergeError(
            f"{transform.get('class_path')} changes each task vector by all others: build the bank anew, of all experts"
        )
    if kind not in (CART, TaskArithmetic, TSVCompress, WeightAveraging):
        why = "has one delta for all tasks" if bank.shared else "makes the delta of each task from those of all"
        raise MergeError(
            f"{name} {why}: build the bank anew, of all experts, or use CART, TaskArithmetic or TSVCompress"
        )
    options = bank.method.get("init_args")
    made: MergeMethod = kind(**(options if isinstance(options, dict) else {}))
    return made


def with_coefficients(bank: TaskBank, method: MergeMethod, reset: bool) -> TaskBank:
    """The bank with coefficients that may stay as they are.

    Raises:
        MergeError: deltas will move, and the coefficients are of these.
    """
    if reset:
        chosen: Any = bank.method.get("chosen")
        start = [chosen["scaling"] if chosen else method.start(name) for name in bank.layers]
        column = torch.tensor(start, dtype=bank.coefficients.dtype)
        return replace(bank, coefficients=column.expand(len(bank.tasks), -1).clone(), learnt={})
    rows = bank.coefficients
    if isinstance(method, CART) and (bank.learnt or (len(rows) and not torch.equal(rows, rows[:1].expand_as(rows)))):
        raise MergeError(
            "what a fit has learnt of this bank is of CART's deltas from the mean of its tasks, and the mean moves: "
            "--reset puts the coefficients back to the method's scale, from which the new bank can be adapted"
        )
    return bank


def open_expert(
    bank: TaskBank, task: str, expert: Source, base: Source | None = None, exclude: Sequence[str] = ()
) -> tuple[Checkpoint, dict[str, Any]]:
    """The expert, with the weights of the bank; and what a bank's recipe says of its file.

    Raises:
        MergeError: it is of another architecture.
    """
    opened = Experts({task: expert}, base, exclude)
    file, shapes = opened.checkpoints[task], bank.shapes
    for name in sorted(shapes.keys() ^ opened.shapes.keys()):
        if name in shapes:
            raise MergeError(
                f"{file.label} has no weight {name}, which the bank has: another architecture", weight=name
            )
        raise MergeError(
            f"{file.label} has a weight {name}, which the bank lacks: another architecture; or leave it out with "
            f"--exclude {name}",
            weight=name,
        )
    for name, shape in shapes.items():
        if tuple(opened.shapes[name]) != shape:
            raise MergeError(
                f"{file.label}: {name} has shape {list(opened.shapes[name])}, in the bank {list(shape)}: another "
                "architecture",
                weight=name,
            )
        kinds = opened.dtypes[name], bank.dtypes[name]
        if kinds[0].is_floating_point != kinds[1].is_floating_point:
            raise MergeError(
                f"{file.label}: {name} is {kinds[0]}, in the bank {kinds[1]}: save the expert in the bank's dtype",
                task=task,
                weight=name,
            )
    inputs: Any = opened.recipe["inputs"]
    return file, inputs


def check_base(bank: TaskBank, file: Checkpoint, task: str) -> None:
    """Raises MergeError where an expert has nothing to do with the origin; or holds NaN or infinity."""
    product = own = other = 0.0
    for name, shape in bank.shapes.items():
        value = file.read(name)
        if value.is_floating_point() and not value.isfinite().all():
            raise MergeError(f"{file.label}: {name} holds NaN or infinity", task=task, weight=name)
        if len(shape) == 2:
            a, b = bank.origin[name].double(), value.double()
            product, own, other = (
                product + (a * b).sum().item(),
                own + a.square().sum().item(),
                other + b.square().sum().item(),
            )
    if own and other and (cosine := product / (own * other) ** 0.5) < LEAST_COSINE:
        raise MergeError(
            f"{file.label} was fine-tuned from another base: the cosine of its matrices with the bank's origin is "
            f"{cosine:.2f}, and above .9 for experts of one base",
            task=task,
        )


def check_same(bank: TaskBank, file: Checkpoint, task: str) -> None:
    """Raises MergeError where an expert is not that of the bank's task."""
    place, product, own = bank.tasks.index(task), 0.0, 0.0
    for name in bank.layers:
        delta = dense_of(bank.deltas[name], place).double()
        apart = file.read(name).double() - bank.origin[name].double()
        product, own = product + (apart * delta).sum().item(), own + delta.square().sum().item()
    if own and abs(product / own - 1) > LARGEST_CHANGE:
        raise MergeError(f"{file.label} is not the expert that the bank has of {task}", task=task)
