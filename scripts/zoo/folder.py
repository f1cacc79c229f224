"""Writes a zoo folder: weights, heads, images, labels and what says how they were made."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.attribution import attribution
from zoo.examples import fixed_set
from zoo.finetuning import severities
from zoo.masters import Masters
from zoo.network import LOGIT_SCALE, NETWORK, accuracy, encoder
from zoo.tasks import TASKS

# Images a task and the seed of each split; training images are drawn afresh and never written.
COUNTS = {"validation": (300, 101), "adaptation": (400, 102), "test": (500, 103)}


def write_zoo(
    masters: Masters,
    work: Path,
    base_folder: Path,
    names: Sequence[str],
    *,
    base_seed: int,
    seed: int,
    output: Path,
    command: str,
) -> None:
    """Writes every file of a zoo, each whole or not at all, and prints a table of accuracies on validation images."""
    severity = severities(base_folder)
    (output / "experts").mkdir(parents=True, exist_ok=True)
    table = load_file(base_folder / "table.safetensors")["table"]
    heads = {name: table[TASKS[name].rows].clone() for name in names}
    images, labels = pictures(masters, names, severity)
    _save(heads, output / "heads.safetensors", {"logit_scale": str(LOGIT_SCALE)})
    _save(images, output / "images.safetensors")
    _save(labels, output / "labels.safetensors")
    _copy(base_folder / "base.safetensors", output / "base.safetensors")
    for name in names:
        _copy(base_folder / f"seed{seed}" / f"{name}.safetensors", output / "experts" / f"{name}.safetensors")
    _write(json.dumps(NETWORK, indent=2) + "\n", output / "network.json")
    _write(attribution(masters, work / "fonts" / "unpacked", names, command), output / "ATTRIBUTION.md")
    # Last: a folder with a zoo.json is complete.
    card = json.dumps(_card(names, severity, base_seed, seed), indent=1, ensure_ascii=False)
    _write(card + "\n", output / "zoo.json")
    _show(output, names)


def pictures(
    masters: Masters, names: Sequence[str], severity: dict[str, float]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images uint8 (N, 32, 32) of every task and split, and labels uint8 (N,); the adaptation images have none."""
    images, labels = {}, {}
    for name in names:
        for split, (count, seed) in COUNTS.items():
            drawn, truth = fixed_set(masters, name, split, severity[name], count, seed)
            images[f"{name}/{split}"] = drawn.contiguous()
            if split != "adaptation":
                labels[f"{name}/{split}"] = truth.to(torch.uint8)
    return images, labels


def _card(names: Sequence[str], severity: dict[str, float], base_seed: int, seed: int) -> dict[str, object]:
    """The contents of `zoo.json`."""
    tasks = [
        {
            "name": name,
            "classes": list(TASKS[name].classes),
            "domain": TASKS[name].domain,
            "severity": severity[name],
            "steps": TASKS[name].steps,
        }
        for name in names
    ]
    return {"format": 1, "tasks": tasks, "seed": seed, "base_seed": base_seed, "logit_scale": LOGIT_SCALE}


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata=metadata)
    part.replace(path)


def _copy(source: Path, path: Path) -> None:
    _save(load_file(source), path)


def _write(text: str, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)


def _show(output: Path, names: Sequence[str]) -> None:
    """Reads the folder back and prints the validation accuracy of base and expert for every task, and the sizes."""
    images, labels = load_file(output / "images.safetensors"), load_file(output / "labels.safetensors")
    heads, network = load_file(output / "heads.safetensors"), encoder()
    rows = []
    for name in names:
        row = []
        for path in (output / "base.safetensors", output / "experts" / f"{name}.safetensors"):
            network.load_state_dict({key: weight.float() for key, weight in load_file(path).items()})
            row.append(accuracy(network, heads[name], images[f"{name}/validation"], labels[f"{name}/validation"]))
        rows.append(row)
    print(f"\n{'validation':12s} {'base':>6s} {'expert':>7s}")
    for name, row in zip([*names, "mean"], [*rows, torch.tensor(rows).mean(0).tolist()], strict=True):
        print(f"{name:12s} {row[0]:6.3f} {row[1]:7.3f}")
    weights = sum(path.stat().st_size for path in [output / "base.safetensors", *(output / "experts").iterdir()])
    picture = (output / "images.safetensors").stat().st_size
    print(
        f"\n{output}: weights {weights / 1e6:.2f} MB, images {picture / 1e6:.2f} MB, repeated images {_repeats(images)}"
    )


def _repeats(images: dict[str, Tensor]) -> int:
    """How many images occur more than once in the whole zoo."""
    digests = [hashlib.sha256(image.numpy().tobytes()).digest() for group in images.values() for image in group]
    return len(digests) - len(set(digests))
