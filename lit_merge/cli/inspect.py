"""The verb `inspect`: what a file or folder is, and what lies in it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from lit_merge.adaptation.training_checkpoint import OWN, read_training_checkpoint
from lit_merge.bank.files import open_bank_folder
from lit_merge.checkpoints import Checkpoint, open_checkpoint
from lit_merge.checkpoints.folders import ADAPTER_CONFIG, weight_file
from lit_merge.checkpoints.locations import resolve
from lit_merge.cli.bank_tree import bank_tree
from lit_merge.cli.command_parser import CommandParser
from lit_merge.console import terminal
from lit_merge.errors import MergeError
from lit_merge.report.weight_tree import megabytes, millions, runs_of, weight_tree

ABOUT = "Shows any checkpoint, task bank, training checkpoint or run as a tree. Reads headers and small files only."


def inspect_command(arguments: Sequence[str]) -> None:
    """Parses, looks and prints.

    Raises:
        MergeError: an option that does not exist, no such file, a file that is none of these or is damaged.
    """
    parser = CommandParser("inspect", ABOUT)
    parser.add_argument("path", help="a file or folder: of weights, of a bank, of a run, or a training checkpoint")
    parser.add_argument("--depth", type=int, help="levels of the tree; all by default")
    parser.add_argument("--all", action="store_true", help="every block of a stack, rather than one of those alike")
    parser.add_argument("--json", action="store_true", help="name, shape and dtype of every weight, as JSON")
    options = parser.parse_args(arguments)
    if options.depth is not None and options.depth < 0:
        raise MergeError(f"inspect: --depth {options.depth}: expected 0 or more")
    console = terminal(markup=True)
    if options.json:
        console.out(json.dumps(listing(options.path), indent=1), highlight=False)
    else:
        # Into a file or a pipe nothing is cut off.
        console = console if console.is_terminal else terminal(markup=True, width=200)
        console.print(look(options.path, options.depth, options.all), highlight=False)


def look(location: str, depth: int | None = None, whole: bool = False) -> RenderableType:
    """What is to be said of a file or folder. See `inspect_command`."""
    path = resolve(location)
    if (path / "bank.json").is_file():
        return bank_tree(path, depth, whole)
    if (path / "metrics.json").is_file():
        return run_tree(path, depth, whole)
    if (state := training_state(path)) is not None:
        return state_tree(path, state)
    return checkpoint_tree(opened(path), depth, whole)


def listing(location: str) -> dict[str, Any]:
    """Name → shape and dtype, of a checkpoint's weights or of a bank's tensors."""
    path = resolve(location)
    if (path / "bank.json").is_file():
        file = open_bank_folder(path)[1]
        return {name: entry(shape, file.dtypes[name]) for name, shape in file.shapes.items()}
    checkpoint = opened(path)
    return {name: entry(shape, checkpoint.dtypes[name]) for name, shape in checkpoint.shapes.items()}


def opened(path: Path) -> Checkpoint:
    """A checkpoint; of a LoRA folder the adapter's own weights, for which no base is needed."""
    return open_checkpoint(weight_file(path) if (path / ADAPTER_CONFIG).is_file() else path)


def entry(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    return {"shape": list(shape), "dtype": short(dtype)}


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def checkpoint_tree(checkpoint: Checkpoint, depth: int | None, whole: bool) -> RenderableType:
    """The weights of a file."""
    weights = {
        name: (f"{' × '.join(map(str, shape)) or 'a number'}  {short(checkpoint.dtypes[name])}", math.prod(shape))
        for name, shape in checkpoint.shapes.items()
    }
    total = sum(count for _, count in weights.values())
    dtypes = runs_of(short(dtype) for dtype in checkpoint.dtypes.values())
    size = f"{millions(total)} parameters, {megabytes(checkpoint.nbytes)}"
    return Group(
        Text(checkpoint.label), weight_tree(weights, f"{len(weights)} weights, {size} ({dtypes})", depth, whole)
    )


def run_tree(path: Path, depth: int | None, whole: bool) -> RenderableType:
    """The table of a run of fit, its files, and its bank."""
    files = Tree("a run of fit", highlight=False)
    for file in sorted(path.iterdir()):
        inside = [one for one in file.rglob("*") if one.is_file()] if file.is_dir() else [file]
        size = megabytes(sum(one.stat().st_size for one in inside))
        count = f"{len(inside)} files, " if file.is_dir() else ""
        files.add(f"[bold]{escape(file.name)}[/bold]  {count}{size}", highlight=False)
    parts: list[RenderableType] = [Text(str(path)), files]
    if (path / "table.txt").is_file():
        parts.insert(0, Text((path / "table.txt").read_text(encoding="utf-8")))
    if (path / "bank" / "bank.json").is_file():
        parts.append(bank_tree(path / "bank", 1 if depth is None else depth, whole))
    return Group(*parts)


def training_state(path: Path) -> dict[str, Any] | None:
    """What a checkpoint of a fit holds; None for anything else. Raises MergeError for one that was changed."""
    if path.suffix != ".ckpt" or not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load fails in as many ways as there are other files
        return None
    return read_training_checkpoint(path) if isinstance(found, dict) and OWN in found else None


def state_tree(path: Path, state: dict[str, Any]) -> RenderableType:
    """How far a fit had come."""
    about = state["lit_merge"]
    tree = Tree(f"training checkpoint of a fit, {megabytes(path.stat().st_size)}", highlight=False)
    tree.add(f"step {state['global_step']}, stage {about['stage_index'] + 1} ({about['granularity']})")
    tree.add(f"rank ratio {about['rank_ratio']:g}, energy {about.get('energy', 1.0):g}")
    tree.add(escape(f"belongs to the bank with fingerprint {about['fingerprint']}"))
    for name, value in state["state_dict"].items():
        tree.add(f"[bold]{escape(name)}[/bold]  {' × '.join(map(str, value.shape))}", highlight=False)
    return Group(Text(str(path)), tree)
