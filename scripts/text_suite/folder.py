"""The finished suite: what lies in its folder."""

import json
import shutil
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from text_suite.finetuning import LOGIT_SCALE, Split, expert_note
from text_suite.splits import Examples


def write_suite(
    output: Path,
    base: Path,
    experts: Path,
    heads: dict[str, Float[Tensor, "C d"]],
    examples: dict[str, Examples],
    splits: dict[str, dict[str, Split]],
    seed: int,
) -> None:
    """Writes base, experts, heads, token ids and labels; the training texts are not among them.

    Files: base.safetensors, embeddings.safetensors, network.json; experts/<task>.safetensors; heads.safetensors
    {task: (C, d)}; tokens.safetensors {task/pool, task/validation, task/test: (N, 48) int16}; labels.safetensors
    {task/validation, task/test: (N,) uint8}; suite.json.
    """
    (output / "experts").mkdir(parents=True, exist_ok=True)
    for name in ("base.safetensors", "embeddings.safetensors", "network.json"):
        shutil.copyfile(base / name, output / name)
    for task in heads:
        shutil.copyfile(experts / f"{task}.safetensors", output / "experts" / f"{task}.safetensors")
    save_file(heads, output / "heads.safetensors", {"logit_scale": str(LOGIT_SCALE)})
    tokens, labels = {}, {}
    for task, parts in splits.items():
        for split in ("pool", "validation", "test"):
            tokens[f"{task}/{split}"] = parts[split][0]
            if split != "pool":
                labels[f"{task}/{split}"] = parts[split][1]
    save_file(tokens, output / "tokens.safetensors", {"format": "pt"})
    save_file(labels, output / "labels.safetensors", {"format": "pt"})
    about = {
        "seed": seed,
        "tasks": [
            {"name": task, "classes": examples[task].classes}
            | {"texts": {split: len(some) for split, some in examples[task].splits.items()}}
            | {"expert": expert_note(experts / f"{task}.safetensors")}
            for task in heads
        ],
    }
    # Last: a folder with this file is whole.
    (output / "suite.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
