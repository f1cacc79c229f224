"""The files beside a model's weights without which it does not load: configuration, tokenizer, chat template."""

import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.cropping import is_vocabulary
from lit_merge.errors import MergeError
from lit_merge.weight_names import ADAPTER_CONFIG

CONFIG = "config.json"
SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")
_HEAD = re.compile(r"(lm_head|embed_out)\b")
# Of a training, not of the model.
LEFT_OUT = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", ADAPTER_CONFIG)


def companion_folder(*checkpoints: Checkpoint | None) -> Path | None:
    """The folder of the first of these checkpoints that has a configuration beside its weights; a LoRA folder has
    none of its own."""
    for checkpoint in checkpoints:
        folders = {file.parent for file in checkpoint.files} if checkpoint is not None else set()
        for folder in folders if len(folders) == 1 else ():
            if (folder / CONFIG).is_file() and not (folder / ADAPTER_CONFIG).exists():
                return folder
    return None


def ties_head(folder: Path, names: Collection[str]) -> str | None:
    """The matrix of embeddings that is a language model's output layer too, by the configuration in its folder; None
    where the weights have an output layer of their own, or there is none."""
    try:
        about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kinds = " ".join(about.get("architectures") or [])
        # transformers leaves out of the file what is so by default.
        tied = bool(about.get("tie_word_embeddings", True)) and ("LMHead" in kinds or "CausalLM" in kinds)
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    if not tied or any(_HEAD.search(name) for name in names):
        return None
    return next((name for name in names if is_vocabulary(name)), None)


def copy_companions(source: Path, target: Path, changes: Mapping[str, Any] | None = None) -> list[str]:
    """Copies what belongs to a model beside its weights; answers the names of the files.

    Args:
        source: the model's folder.
        target: where the weights are written, which exists.
        changes: entries of config.json that are no longer true, with what they are now.

    Raises:
        MergeError: a file that cannot be read, or a configuration that is no JSON.
    """
    copied = []
    for file in sorted(source.rglob("*.jinja")) + sorted(source.iterdir()):
        if file.suffix not in SUFFIXES or file.name in LEFT_OUT or file.name.endswith(".index.json"):
            continue
        place = target / file.relative_to(source)
        if file.is_file() and not place.exists():
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
            except OSError as error:
                raise MergeError(f"{file} cannot be copied beside the weights: {error.strerror}") from error
            copied.append(str(file.relative_to(source)))
    if changes:
        _change(target / CONFIG, changes)
    return copied


def _change(path: Path, changes: Mapping[str, Any]) -> None:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MergeError(f"{path.name} beside the weights is no JSON: {error}") from error
    # Language models with several towers keep the vocabulary of each in a part of its own.
    places = [about, *(value for value in about.values() if isinstance(value, dict))]
    for name, value in changes.items():
        for place in [one for one in places if name in one]:
            place[name] = value
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
