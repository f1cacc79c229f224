"""What `inspect` says of a task bank."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from lit_merge.bank.files import AnyFile, open_bank_folder
from lit_merge.bank.learnt import relative_size
from lit_merge.bank.packing import Packed
from lit_merge.bank.task_bank import TaskBank
from lit_merge.report.weight_tree import megabytes, weight_tree


def bank_tree(path: Path, depth: int | None, whole: bool) -> RenderableType:
    """The method, the tasks with their coefficients and bytes, what the bank was made of, and the weights with their
    ranks."""
    about, file = open_bank_folder(path)
    values = file.read("coefficients").float()
    names: list[str] = about["tasks"] if len(values) == len(about["tasks"]) else ["all tasks together"]
    dtypes: dict[str, torch.dtype] = about["dtypes"]
    model = sum(math.prod(file.shapes[f"origin/{name}"]) * dtype.itemsize for name, dtype in dtypes.items())
    options = ", ".join(f"{k}={v}" for k, v in (about["method"].get("init_args") or {}).items())
    title = f"task bank, {about['method'].get('class_path')}({options}), {megabytes(about['nbytes'])}"
    tree = Tree(escape(f"{title}, {about['nbytes'] / model:.2f} times one model"), highlight=False)
    sizes = [task_bytes(about, file, row) for row in range(len(values))]
    title = (
        f"{len(about['tasks'])} tasks; coefficients: mean, lowest to highest of {values.shape[1]} weights; own bytes"
    )
    tasks = tree.add(title)
    for name, row, size in zip(names, values, sizes, strict=True):
        spread = f"{row.mean():.3f}, {row.min():.3f} to {row.max():.3f}" if row.numel() else "none"
        tasks.add(f"[bold]{escape(name)}[/bold]  {spread}  {megabytes(size)}", highlight=False)
    for line in (*_learnt(path, about["learnt"]), *_made_of(about)):
        tree.add(escape(line), highlight=False)
    weights = {}
    for name in about["dtypes"]:
        origin = file.shapes[f"origin/{name}"]
        shape = " × ".join(map(str, origin)) or "a number"
        kinds = _delta(about, name)
        stored = about["packed"][name].origin if "packed" in about else _short(file.dtypes[f"origin/{name}"])
        weights[name] = (f"{shape}  {stored}  {kinds}", math.prod(origin))
    title = f"{len(weights)} weights, {len(about['layers'])} with deltas, {len(about['ranks'])} of low rank"
    tree.add(weight_tree(weights, title, depth, whole))
    return Group(Text(str(path)), tree)


def task_bytes(about: Mapping[str, Any], file: AnyFile, row: int) -> int:
    """Of one task's deltas in the file."""
    if "packed" in about:
        packed: Mapping[str, Packed] = about["packed"]
        return sum(one.nbytes(one.rows.start + row) for one in packed.values())
    parts = [key for key in file.shapes if key.partition("/")[0] in ("U", "S", "V", "delta")]
    return sum(math.prod(file.shapes[key][1:]) * file.dtypes[key].itemsize for key in parts)


def _delta(about: Mapping[str, Any], name: str) -> str:
    """Rank of a weight's deltas, and how they are stored."""
    if name not in about["layers"]:
        return "the same in all"
    if "packed" not in about:
        rank = about["ranks"].get(name)
        return f"rank {rank}" if rank else "dense delta"
    packed: Packed = about["packed"][name]
    ranks = sorted({packed.rank(row) for row in packed.rows} or {0})
    span = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else f"{ranks[0]}"
    kept = about.get("recipe", {}).get("kept", {}).get(name)
    energy = "" if kept is None else f"  {100 * kept:.1f} % of the energy"
    return f"rank {span}  {', '.join(packed.ranks)}{energy}"


def _made_of(about: Mapping[str, Any]) -> list[str]:
    """The base that the origin is a difference from, and how the bank was compressed."""
    lines = [f"format version {about['format_version']}"]
    if "base" in about:
        lines.append(f"origin: a difference from {about['base']['location']}")
    recipe = about.get("recipe", {})
    options = [f"{name}={recipe[name]}" for name in ("budget", "max_size", "dtype") if name in recipe]
    if "packed" in about:
        lines.append(f"compressed: {', '.join(options) or 'without a limit'}")
    if files := recipe.get("inputs"):
        named = [f"{task}: {one['file']} {one['digest'][:8]}" for task, one in files.items() if one.get("file")]
        lines += [f"made of {', '.join(named)}"] if named else []
    return lines


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _learnt(path: Path, keys: Sequence[str]) -> list[str]:
    """What a fit has learnt of a bank next to one coefficient per task and weight."""
    if not keys:
        return []
    bank, found = TaskBank.load(path), []
    if directions := bank.directions:
        every = torch.cat([value.flatten() for value in directions.values()]).float()
        spread = f"{every.mean():.3f}, {every.min():.3f} to {every.max():.3f}"
        found.append(f"a coefficient for every direction of {len(directions)} weights: {spread}")
    if correction := bank.correction:
        ranks = sorted({value.shape[1] for key, value in correction.items() if key.startswith("A/")})
        size = f"{100 * relative_size(bank.learnt, bank.origin):.2g} % of its norm"
        rank = f" of rank {ranks[0]}" if ranks else ""
        nbytes = megabytes(sum(value.nbytes for value in correction.values()))
        found.append(f"a correction{rank} of the origin, for all tasks together: {size}, {nbytes}")
    return found
