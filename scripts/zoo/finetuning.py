"""Fine-tunes one expert a task from the base, its head frozen, and sets the severity of the task's domain."""

import json
import time
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from zoo.examples import Batch, Batches, fixed_set, task_batches
from zoo.masters import Masters
from zoo.network import accuracy, encoder, logits, pixels
from zoo.stopping import StopPoint
from zoo.tasks import TASKS
from zoo.training import clip, trainer, warmed_cosine

_RATE, _BATCH = 2e-4, 128
_WATCHED, _WATCHED_SEED = 400, 5


class Finetuning(L.LightningModule):
    """The encoder on one task; the head (C, 128) stays as it is."""

    def __init__(self, base: dict[str, Tensor], head: Tensor, steps: int) -> None:
        super().__init__()
        self.network = encoder()
        self.network.load_state_dict({name: weight.float() for name, weight in base.items()})
        self.register_buffer("head", head)
        self._steps = steps

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, warmed up over a tenth of the steps, then a cosine."""
        adam = torch.optim.AdamW(self.network.parameters(), lr=_RATE, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            adam, lambda step: warmed_cosine(step, self._steps, 0.1 * self._steps)
        )
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss on images (B, 32, 32) and labels (B,)."""
        pictures, labels = batch
        loss = F.cross_entropy(logits(self.network(pixels(pictures)), self.head), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips here, since Lightning does not clip under a fused optimiser."""
        clip(self.network)


def calibrate(masters: Masters, base: dict[str, Tensor], head: Tensor, name: str) -> float:
    """The severity, by bisection, at which the base has the wanted accuracy on validation images."""
    task = TASKS[name]
    if task.real:
        return 1.0
    network = encoder()
    network.load_state_dict({key: weight.float() for key, weight in base.items()})
    low, high = 0.1, 2.0
    for _ in range(6):
        severity = (low + high) / 2
        watched = fixed_set(masters, name, "validation", severity, _WATCHED, _WATCHED_SEED)
        easy = accuracy(network, head, *watched) > task.base_accuracy
        low, high = (severity, high) if easy else (low, severity)
    return round(severity, 3)


def finetune(
    masters: Masters, base: dict[str, Tensor], head: Tensor, name: str, severity: float, seed: int
) -> Finetuning:
    """One expert; the seed decides the order of the data and every random change of it."""
    steps = TASKS[name].steps
    L.seed_everything(seed, verbose=False)
    module = Finetuning(base, head, steps)
    batches = Batches(task_batches(masters, name, severity, _BATCH), steps, 1000 * (seed + 1) + list(TASKS).index(name))
    run = trainer(max_epochs=1, limit_train_batches=steps)
    run.fit(module, DataLoader(batches, batch_size=None))
    return module


def train_experts(
    masters: Masters,
    base: dict[str, Tensor],
    table: Tensor,
    names: tuple[str, ...],
    folder: Path,
    seed: int,
    stop: StopPoint,
) -> None:
    """Writes `folder/seed<seed>/<task>.safetensors` (float16) for every task that has none of its present recipe."""
    target = folder / f"seed{seed}"
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        task, path = TASKS[name], target / f"{name}.safetensors"
        severity = _severity(masters, base, table[task.rows], name, folder)
        note = {"severity": str(severity), "steps": str(task.steps)}
        if path.exists() and expert_note(path).items() >= note.items():
            continue
        stop.check()
        started = time.monotonic()
        module = finetune(masters, base, table[task.rows], name, severity, seed)
        watched = fixed_set(masters, name, "validation", severity, _WATCHED, _WATCHED_SEED)
        share = accuracy(module.network, module.head, *watched)
        weights = {key: weight.half().contiguous() for key, weight in module.network.state_dict().items()}
        save_file(weights, target / ".part", metadata={**note, "validation": f"{share:.4f}"})
        (target / ".part").replace(path)
        seconds = time.monotonic() - started
        print(f"expert {name}: severity {severity}, validation {share:.3f}, {seconds:.0f} s", flush=True)


def expert_note(path: Path) -> dict[str, str]:
    """What an expert's file says of how it was made."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def severities(folder: Path) -> dict[str, float]:
    """The severities set so far for a base: every seed of its experts has the same tasks."""
    known = json.loads((folder / "severities.json").read_text("utf-8"))
    return {name: float(entry["severity"]) for name, entry in known.items()}


def _severity(masters: Masters, base: dict[str, Tensor], head: Tensor, name: str, folder: Path) -> float:
    """The severity on file when it was set for the present effects, else a newly set one."""
    path, task = folder / "severities.json", TASKS[name]
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    recipe = {"effects": task.effects, "background": task.background, "base_accuracy": task.base_accuracy}
    if {key: known.get(name, {}).get(key) for key in recipe} != recipe:
        known[name] = {**recipe, "severity": calibrate(masters, base, head, name)}
        path.write_text(json.dumps(known, indent=1), "utf-8")
    return float(known[name]["severity"])
