"""Tasks that a finished bank gains and loses, without the experts that it was made of."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lit_merge.bank.low_rank import Delta, LowRank
from lit_merge.bank.task_bank import TaskBank
from lit_merge.checkpoints import Checkpoint, Source
from lit_merge.console import track
from lit_merge.errors import MergeError
from lit_merge.experts.weight import Weight
from lit_merge.merge.growth.checks import (
    check_base,
    check_same,
    check_task_name,
    method_of,
    open_expert,
    with_coefficients,
)
from lit_merge.merge.growth.rows import dense_of, stored_dtype, wide, with_row, without_row, zeros_like
from lit_merge.merge.growth.weights import Change, GrownWeights, Recut, rank_for
from lit_merge.methods import CART, MergeMethod, TaskArithmetic, TSVCompress, WeightAveraging


def add_task(
    bank: TaskBank,
    task: str,
    expert: Source,
    *,
    base: Source | None = None,
    exclude: Sequence[str] = (),
    reset: bool = False,
) -> Change:
    """The bank with one more task.

    Task arithmetic and TSV-Compress treat every task by itself, and weight averaging needs no more than the mean: the
    result is that of a bank built anew, up to the rounding of what the bank stores. CART's origin is the mean of all
    experts, and becomes exactly (T·θ̄ + θ_new)/(T + 1). The other deltas are taken from the new mean with the bank's own
    low-rank experts in place of the experts: Δ_t' = SVD_k(Δ_t − (θ_new − θ̄)/(T + 1)). What the bank has cut off them
    before stays lost; the rest of the weights is exact.

    Coefficients and what else a fit has learnt stay as they are where deltas stay; the new task starts at their mean.

    Args:
        bank: of TaskArithmetic, TSVCompress, WeightAveraging or CART, without a transform.
        task: name of the new task.
        expert: path or state dict.
        base: the pretrained checkpoint, which a LoRA expert needs.
        exclude: shell patterns of the expert's weights that are not merged, as `classifier.*`.
        reset: put all coefficients back to the method's scale, and forget what a fit has learnt.

    Raises:
        MergeError: a method that makes the deltas of all tasks together; a name that is taken or none; an expert of
            another architecture or base; CART with coefficients that differ between the tasks, without `reset`.
    """
    method = method_of(bank)
    check_task_name(task)
    if task in bank.tasks:
        raise MergeError(f"the bank has a task {task!r} already: choose another name, or remove that one first")
    bank = with_coefficients(bank, method, reset)
    file, inputs = open_expert(bank, task, expert, base, exclude)
    check_base(bank, file, task)
    count = len(bank.tasks)
    selected = method.selected(bank.shapes, count + 1)
    if isinstance(method, TSVCompress) and method.rank_ratio is None:
        # The directions of one more task leave room for fewer.
        bank = bank.cut({name: max(1, min(bank.shapes[name]) // (count + 1)) for name in bank.ranks})
    weights, recut = GrownWeights(bank), Recut()
    for name in track(bank.origin, f"adding {task}", len(bank.origin)):
        weights.keep(name, *_grown(bank, method, name, file.read(name), name in selected, recut))
    return weights.done(method, [*bank.tasks, task], f"added {task}", recut, grown=inputs)


def _grown(
    bank: TaskBank, method: MergeMethod, name: str, expert: Tensor, matrix: bool, recut: Recut
) -> tuple[Tensor, Delta | None]:
    """Origin and delta of a weight with one more expert."""
    origin, delta, count = bank.origin[name], bank.deltas.get(name), len(bank.tasks)
    if not origin.is_floating_point():
        return origin, None if delta is None else with_row(delta, None)
    old = wide(origin)
    apart = expert.to(old.dtype) - old
    moved = (old + apart / (count + 1)).to(origin.dtype)
    if isinstance(method, WeightAveraging):
        return moved, None
    if delta is None and not apart.any():
        return origin, None
    rank = max(1, delta.rank) if isinstance(delta, LowRank) else None
    if delta is None and matrix:
        rank = rank_for(method, old.shape, count + 1)
    dtype = origin.dtype if delta is None else stored_dtype(delta)
    if isinstance(method, CART):
        shifts = apart.expand(count, *apart.shape) / -(count + 1)
        return moved, recut(delta, shifts, apart * (count / (count + 1)), rank, dtype)
    if rank is None:
        new: Delta = apart[None]
    elif isinstance(method, TaskArithmetic) and method.rank_ratio is None:
        # Whole task vectors, of which those of updates are known as factors.
        new = LowRank.from_dense(apart[None], min(apart.shape))
        new = new.truncate(max(1, new.above(Weight(name, apart[None], old).rounding).rank))
    else:
        new = LowRank.from_dense(apart[None], min(rank, *apart.shape))
    return origin, with_row(zeros_like(new, count) if delta is None else delta, new.to(dtype))


def remove_task(bank: TaskBank, task: str, *, expert: Source | None = None, reset: bool = False) -> Change:
    """The bank without one of its tasks.

    Exact, at the ranks that the bank has, where every task is treated by itself. CART's origin becomes the mean of the
    others, (T·θ̄ − θ_t)/(T − 1): exactly where the expert is given, otherwise by the bank's own low-rank expert of it.
    The other deltas are recentred, see `add_task`.

    Args:
        bank: as `add_task` takes it, with two tasks at least.
        task: one of them.
        expert: of this task; weight averaging needs it.
        reset: put all coefficients back to the method's scale, and forget what a fit has learnt.

    Raises:
        MergeError: what `add_task` refuses; no such task, or the only one; an expert of another task.
    """
    method = method_of(bank)
    if task not in bank.tasks:
        raise MergeError(f"no task {task!r} in this bank, which has {', '.join(bank.tasks)}", task=task)
    if len(bank.tasks) == 1:
        raise MergeError(f"{task} is the bank's only task: without it there is no bank", task=task)
    if isinstance(method, WeightAveraging) and expert is None:
        raise MergeError(f"WeightAveraging keeps the mean only: give the expert of {task} with --expert", task=task)
    bank = with_coefficients(bank, method, reset)
    file = None if expert is None else open_expert(bank, task, expert)[0]
    place = bank.tasks.index(task)
    if file is not None and not isinstance(method, WeightAveraging):
        check_same(bank, file, task)
    weights, recut = GrownWeights(bank), Recut()
    for name in track(bank.origin, f"removing {task}", len(bank.origin)):
        weights.keep(name, *_shrunk(bank, method, name, place, file, recut))
    left = [one for one in bank.tasks if one != task]
    return weights.done(method, left, f"removed {task}", recut, removed=place, known=file is not None)


def _shrunk(
    bank: TaskBank, method: MergeMethod, name: str, place: int, file: Checkpoint | None, recut: Recut
) -> tuple[Tensor, Delta | None]:
    """Origin and delta of a weight without the task at this place."""
    origin, delta = bank.origin[name], bank.deltas.get(name)
    rest = None if delta is None else without_row(delta, place)
    if not isinstance(method, CART | WeightAveraging) or not origin.is_floating_point():
        return origin, rest
    if delta is None and isinstance(method, CART):
        return origin, None
    old, others = wide(origin), len(bank.tasks) - 1
    own = dense_of(delta, place) if file is None else file.read(name).to(old.dtype) - old
    shift = own / others
    if rest is not None:
        rank = max(1, rest.rank) if isinstance(rest, LowRank) else None
        rest = recut(rest, shift.expand(others, *shift.shape), None, rank, stored_dtype(rest))
    return (old - shift).to(origin.dtype), rest


def rename_task(bank: TaskBank, task: str, name: str) -> TaskBank:
    """The bank with another name for one of its tasks: nothing else changes, whatever the method.

    Raises:
        MergeError: no such task, or a name that is taken or none.
    """
    if task not in bank.tasks:
        raise MergeError(f"no task {task!r} in this bank, which has {', '.join(bank.tasks)}", task=task)
    check_task_name(name)
    if name in bank.tasks:
        raise MergeError(f"the bank has a task {name!r} already: choose another name")
    method = dict(bank.method)
    if isinstance(options := method.get("init_args"), dict):
        # Some options are of every task.
        method["init_args"] = {key: _renamed(value, task, name) for key, value in options.items()}
    tasks = tuple(name if one == task else one for one in bank.tasks)
    recipe = {key: _renamed(value, task, name) if key == "inputs" else value for key, value in bank.recipe.items()}
    return replace(bank, tasks=tasks, method=method, recipe=recipe)


def _renamed(value: Any, task: str, name: str) -> Any:
    return {name if key == task else key: one for key, one in value.items()} if isinstance(value, Mapping) else value
