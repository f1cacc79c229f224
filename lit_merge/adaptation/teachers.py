"""What the experts predict of the inputs of a fit, computed once, before its first step."""

import hashlib
import json
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
# Inputs of a task. From 16 of each, directions learn what holds for those alone (docs/adaptation.md).
FEWEST = 32


def suiting(options: Mapping[str, Any], data: TaskData | None) -> dict[str, Any]:
    """Options of adaptation: no teachers by default where an input comes only once, its task is not known, or a task
    has too few for a coefficient of every direction."""
    named = options.get("stages") or options.get("objective") or not options.get("teachers", True)
    off = data is not None and not named and (data.online or data.mixed or _few(data))
    return {**options, **({"teachers": False} if off else {})}


def _few(data: TaskData) -> bool:
    try:
        return min(map(len, data.unlabelled().values()), default=FEWEST) < FEWEST
    except MergeError:
        return False  # there are none, which a fit says


def known_beforehand(data: TaskData, trainer: Any) -> bool:
    """Whether it is known before the first step which inputs a fit will draw, and each is the same every time."""
    changing = data.online or data.mixed or data.augment is not None
    return not changing and trainer.accumulate_grad_batches == 1 and trainer.max_steps > 0


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
    every: Mapping[bool, tuple[Ask, Sequence[int]]],
    data: TaskData,
    device: torch.device,
    about: Sequence[str],
    file: Path | None,
) -> dict[bool, "Teachers"]:
    """Whether of features → what experts answer at the steps that ask for it; see `Teachers`."""
    found = {}
    for of_features, (ask, steps) in every.items():
        named = file.with_name(f"{file.stem}-features{file.suffix}") if file is not None and of_features else file
        found[of_features] = Teachers(data, ask, steps, device, " ".join([*about, *["features"] * of_features]), named)
    return found


class Teachers:
    """task → logits (N, C) of the task's expert for every input that some steps draw, on the CPU.

    Args:
        data: whose inputs to adapt on they are.
        ask: task and inputs → the logits of its expert.
        steps: at which experts are asked.
        device: on which experts are asked.
        about: what the logits depend on besides the data: the experts and the heads, as a digest.
        file: where they are kept, so that a fit that goes on finds them.

    Raises:
        MergeError: the file is of other inputs or experts, or damaged.
    """

    def __init__(
        self,
        data: TaskData,
        ask: Ask,
        steps: Sequence[int],
        device: torch.device,
        about: str,
        file: Path | None = None,
    ) -> None:
        sources = data.unlabelled()
        self.draws = data.passes({task: len(source) for task, source in sources.items()})
        # Blocks are the same however long a fit goes on: rounding depends on how many inputs are asked together.
        size = max(1, BATCH // data.batch_size)
        blocks = [range(steps[i], steps[i] + size) for i in range(0, len(steps), size)]
        asked: dict[str, list[list[int]]] = {task: [] for task in sources}
        self.rows: dict[str, dict[int, int]] = {task: {} for task in sources}
        """Task → input → its row of the logits."""
        for block in blocks:
            drawn = [self.draws.at(step) for step in block]
            for task, rows in self.rows.items():
                new = [index for one in drawn for index in one[task] if index not in rows]
                asked[task].append(list(dict.fromkeys(new)))
                rows.update({index: len(rows) + i for i, index in enumerate(asked[task][-1])})
        content = json.dumps([data.fingerprint, about, asked])
        digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        if file is not None and file.exists():
            self.logits = _read(file, digest, {task: len(rows) for task, rows in self.rows.items()})
            return
        self.logits = {task: _ask_all(ask, task, source, asked[task], device) for task, source in sources.items()}
        if file is not None:
            write_safetensors(file, self.logits, {"format": "lit_merge teachers", "fingerprint": digest})

    def at(self, step: int) -> dict[str, Float[Tensor, "B C"]]:
        """task → logits of the inputs of a step."""
        drawn = self.draws.at(step).items()
        return {task: self.logits[task][[self.rows[task][index] for index in chosen]] for task, chosen in drawn}


@torch.no_grad()
def _ask_all(
    ask: Ask, task: str, source: ImageSource, blocks: Sequence[Sequence[int]], device: torch.device
) -> Float[Tensor, "N C"]:
    return torch.cat([ask(task, source.read(block).to(device)).cpu() for block in blocks if block])


def _read(file: Path, digest: str, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    found = SafetensorsFile(file)
    if found.metadata.get("fingerprint") != digest or {t: shape[0] for t, shape in found.shapes.items()} != sizes:
        raise MergeError(f"{file} holds what other experts predicted, or of other inputs: remove it")
    return {task: found.read(task) for task in sizes}
