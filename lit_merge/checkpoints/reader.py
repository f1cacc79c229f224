"""A checkpoint of whatever format, from a path or a state dict."""

import os
from collections.abc import Mapping
from pathlib import Path

from lit_merge.checkpoints.adapters.lora import LoraFolder
from lit_merge.checkpoints.checkpoint import Checkpoint, Source, StateDict
from lit_merge.checkpoints.folders import ADAPTER_CONFIG, weight_file
from lit_merge.checkpoints.input_file import InputFile, of_one_moment
from lit_merge.checkpoints.inputs import lists
from lit_merge.checkpoints.locations import resolve
from lit_merge.checkpoints.sharded import ShardedFiles
from lit_merge.checkpoints.single_file import EXPECTED, open_one_file


def open_checkpoint(
    source: Source, label: str = "state dict", base: Checkpoint | None = None, lenient: bool = False
) -> Checkpoint:
    """Named tensors, read one at a time.

    Args:
        source: a state dict, or where weights lie (a path, `hf://org/name`, `zoo:8/…`): a safetensors file, a file of
            torch.save, an index of shards, a folder of Hugging Face or open_clip, a PEFT LoRA folder. Its content tells
            which, not its name. `file.pt#model_ema` names one of several models in a training checkpoint. A checkpoint
            that is open already is itself.
        label: what messages call a state dict.
        base: what a LoRA folder was trained on.
        lenient: leave out what cannot be merged, rather than refuse the file: see `Checkpoint.unfit`.

    Raises:
        MergeError: missing, unreadable, broken, hostile, or without weights; a LoRA folder without or for another base.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, Mapping):
        return StateDict(source, label, lenient)
    location, inside = os.fspath(source), None
    if "#" in location and not Path(location).expanduser().exists():
        location, _, inside = location.rpartition("#")
    path = resolve(location)
    if path.is_dir() and inside is None:
        lists(path)
        return of_one_moment(path, lambda: _open_folder(path, base, lenient))
    return _open_file(path, lenient, inside)


def _open_folder(folder: Path, base: Checkpoint | None, lenient: bool) -> Checkpoint:
    if (folder / ADAPTER_CONFIG).exists():
        return LoraFolder(folder, base)
    return _open_file(weight_file(folder), lenient)


def _open_file(path: Path, lenient: bool, inside: str | None = None) -> Checkpoint:
    file = InputFile(path, EXPECTED)
    # An index is JSON. A safetensors file has a length before its brace.
    if file.start(EXPECTED).lstrip().startswith(b"{"):
        return ShardedFiles(file, lenient)
    return open_one_file(file, lenient, inside)
