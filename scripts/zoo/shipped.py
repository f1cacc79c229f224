"""The base and the eight experts that the package ships, instead of training them: a larger suite in half the time."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from zoo.alphabets import CLASSES
from zoo.examples import all_classes
from zoo.masters import Masters
from zoo.network import encoder, logits, pixels
from zoo.pretraining import write_weights
from zoo.tasks import TASKS

# Images that the other classes' rows are fitted on, 256 at a time, and how.
_BATCHES, _BATCH, _STEPS, _RATE = 100, 256, 200, 0.05


def take_shipped(masters: Masters, shipped: Path, folder: Path) -> None:
    """Writes what pretraining and the eight fine-tunings of seed 0 would write, from the shipped suite.

    Its class table is shipped for the eight tasks' characters only. The other rows are fitted on training fonts by
    the loss that the base was trained with, on the frozen base.
    """
    card = json.loads((shipped / "zoo.json").read_text("utf-8"))
    experts = folder / f"seed{card['seed']}"
    experts.mkdir(parents=True, exist_ok=True)
    severities = {}
    for one in card["tasks"]:
        task = asdict(TASKS[one["name"]])
        kept = {key: task[key] for key in ("effects", "background", "base_accuracy")}
        severities[one["name"]] = {**kept, "severity": one["severity"]}
        note = {"severity": str(one["severity"]), "steps": str(one["steps"])}
        save_file(load_file(shipped / "experts" / f"{one['name']}.safetensors"), experts / ".part", metadata=note)
        (experts / ".part").replace(experts / f"{one['name']}.safetensors")
    (folder / "severities.json").write_text(json.dumps(severities, indent=1), "utf-8")
    base = load_file(shipped / "base.safetensors")
    write_weights(folder, base, _table(masters, base, load_file(shipped / "heads.safetensors")))


def _table(masters: Masters, base: dict[str, Tensor], heads: dict[str, Tensor]) -> Tensor:
    """The unit rows (628, 128): those of the heads as they are, the others fitted."""
    network, generator = encoder().eval(), Generator().manual_seed(0)
    network.load_state_dict({name: weight.float() for name, weight in base.items()})
    draw, features, labels = all_classes(masters, "training", _BATCH), [], []
    with torch.no_grad():
        for _ in range(_BATCHES):
            pictures, rows = draw(generator)
            features.append(network(pixels(pictures)))
            labels.append(rows)
    seen, truth = torch.cat(features), torch.cat(labels)
    known, given = torch.zeros(CLASSES, 1, dtype=torch.bool), torch.zeros(CLASSES, seen.shape[1])
    for name, head in heads.items():
        known[TASKS[name].rows], given[TASKS[name].rows] = True, head.float()
    sums = torch.zeros_like(given).index_add_(0, truth, F.normalize(seen, dim=1) - F.normalize(seen, dim=1).mean(0))
    fitted = F.normalize(sums, dim=1).requires_grad_()
    adam = torch.optim.Adam([fitted], lr=_RATE)
    for step in range(_STEPS):
        adam.param_groups[0]["lr"] = _RATE * (1 - step / _STEPS)
        adam.zero_grad()
        loss = F.cross_entropy(logits(seen, torch.where(known, given, F.normalize(fitted, dim=1))), truth)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    print(f"class table: {int(known.sum())} rows shipped, the others fitted, loss {loss.item():.3f}", flush=True)
    return torch.where(known, given, F.normalize(fitted.detach(), dim=1))
