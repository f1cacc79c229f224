"""What the experts predict of a pool of inputs, computed once where every input comes up again in a fit."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.checkpoints import SafetensorsFile, write_safetensors
from lit_merge.data import TaskData
from lit_merge.data.streams import ImageSource
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts

Ask = Callable[[str, Tensor], Float[Tensor, "B C"]]
"""Logits, or features (B, d)."""
BATCH = 256


def comes_again(data: TaskData, trainer: Any) -> bool:
    """Whether every input to adapt on is drawn at least once on average, and is the same each time."""
    if data.online or data.mixed or data.augment is not None or trainer.accumulate_grad_batches != 1:
        return False
    drawn = trainer.max_steps * data.batch_size * trainer.world_size
    return all(len(source) <= drawn for source in data.unlabelled().values())


def check_teachers(made_of: Mapping[str, Any], experts: Experts) -> None:
    """Raises MergeError for experts whose files are not those that a bank was made of, as its recipe says; banks of
    experts in memory, and of earlier programs, say nothing."""
    known: Any = made_of.get("inputs", {})
    given: Any = experts.recipe["inputs"]
    for task, file in given.items():
        if task in known and known[task]["digest"] != file["digest"]:
            raise MergeError(
                f"{experts.checkpoints[task].label} is not the expert of {task} that the bank was made of "
                f"({known[task]['file']}): give that one as teacher, or leave model.experts out, and the bank teaches",
                task=task,
            )


def ask_once(
    every: Mapping[bool, Ask], data: TaskData, device: torch.device, about: Sequence[str], file: Path | None
) -> dict[bool, "Teachers"]:
    """Whether of features → what experts answer, of all that are asked for; see `Teachers`."""
    found = {}
    for of_features, ask in every.items():
        named = file.with_name(f"{file.stem}-features{file.suffix}") if file is not None and of_features else file
        found[of_features] = Teachers(data, ask, device, " ".join([*about, *["features"] * of_features]), named)
    return found


class Teachers:
    """task → logits (N, C) of the task's expert for every input to adapt on, on the CPU.

    Args:
        data: whose inputs to adapt on they are.
        ask: task and inputs → the logits of its expert.
        device: on which experts are asked.
        about: what the logits depend on besides the data: the experts and the heads, as a digest.
        file: where they are kept, so that a fit that goes on finds them.

    Raises:
        MergeError: the file is of other inputs or experts, or damaged.
    """

    def __init__(self, data: TaskData, ask: Ask, device: torch.device, about: str, file: Path | None = None) -> None:
        sources = data.unlabelled()
        self.draws = data.passes({task: len(source) for task, source in sources.items()})
        digest = hashlib.blake2b(f"{data.fingerprint} {about}".encode(), digest_size=16).hexdigest()
        if file is not None and file.exists():
            self.logits = _read(file, digest, sources)
            return
        self.logits = {task: _ask_all(ask, task, source, device) for task, source in sources.items()}
        if file is not None:
            write_safetensors(file, self.logits, {"format": "lit_merge teachers", "fingerprint": digest})

    def at(self, step: int) -> dict[str, Float[Tensor, "B C"]]:
        """task → logits of the inputs of a step."""
        return {task: self.logits[task][list(chosen)] for task, chosen in self.draws.at(step).items()}


@torch.no_grad()
def _ask_all(ask: Ask, task: str, source: ImageSource, device: torch.device) -> Float[Tensor, "N C"]:
    parts: Sequence[range] = [range(i, min(i + BATCH, len(source))) for i in range(0, len(source), BATCH)]
    return torch.cat([ask(task, source.read(part).to(device)).cpu() for part in parts])


def _read(file: Path, digest: str, sources: Mapping[str, ImageSource]) -> dict[str, Tensor]:
    found = SafetensorsFile(file)
    sizes = {task: len(source) for task, source in sources.items()}
    if found.metadata.get("fingerprint") != digest or {t: shape[0] for t, shape in found.shapes.items()} != sizes:
        raise MergeError(f"{file} holds what other experts predicted, or of other inputs: remove it")
    return {task: found.read(task) for task in sizes}
