"""Fine-tunes one expert per task from the base, its head frozen."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.fabric import Fabric
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from text_suite.encoder import PADDING, SentenceEncoder, fast_products, features, read_encoder
from text_suite.tasks import TASKS, Task

LOGIT_SCALE = 30.0
_RATE, _WARMUP = 2e-4, 0.1
Split = tuple[Int[Tensor, "N S"], Int[Tensor, " N"]]


def class_means(encoder: SentenceEncoder, texts: Split) -> Float[Tensor, "C d"]:
    """The head: mean features of every class under the pretrained encoder, of norm 1."""
    ids, labels = texts
    found = features(encoder, ids)
    return F.normalize(torch.stack([found[labels == c].mean(0) for c in range(int(labels.max()) + 1)]), dim=1)


def make_heads(base: Path, splits: dict[str, dict[str, Split]]) -> dict[str, Float[Tensor, "C d"]]:
    """The heads of all tasks, from `base/heads.safetensors` where that exists."""
    path = base / "heads.safetensors"
    if not path.exists():
        encoder = read_encoder(base).to(Fabric(devices=1).device)
        heads = {task: class_means(encoder, parts["train"]) for task, parts in splits.items()}
        save_file(heads, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    found = load_file(path)
    return {task: found[task] for task in splits}


def epoch(texts: Split, size: int, generator: torch.Generator) -> Iterator[Split]:
    """Random batches of texts of similar length."""
    ids, labels = texts
    lengths = (ids != PADDING).sum(1)
    batches: list[Tensor] = []
    for some in torch.randperm(len(ids), generator=generator).split(8 * size):
        batches += some[lengths[some].argsort(stable=True)].split(size)
    for i in torch.randperm(len(batches), generator=generator).tolist():
        yield ids[batches[i]], labels[batches[i]]


def finetune(encoder: SentenceEncoder, task: Task, texts: Split, head: Float[Tensor, "C d"], seed: int) -> None:
    """Trains the encoder in place; the seed decides the order of the texts and dropout."""
    torch.manual_seed(seed)
    device, head = next(encoder.parameters()).device, head.to(next(encoder.parameters()).device)
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.AdamW(encoder.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    steps = task.epochs * math.ceil(len(texts[0]) / task.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min((step + 1) / (_WARMUP * steps), max(0.0, (steps - step) / ((1 - _WARMUP) * steps)))
    )
    encoder.train()
    for _ in range(task.epochs):
        for ids, labels in epoch(texts, task.batch, generator):
            with fast_products(device):
                found = encoder(ids.to(device))
            loss = F.cross_entropy(LOGIT_SCALE * found @ head.T, labels.long().to(device))
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            adam.step()
            schedule.step()
    encoder.eval()


def accuracy(encoder: SentenceEncoder, head: Float[Tensor, "C d"], texts: Split) -> float:
    """Share of texts whose class is found."""
    return ((features(encoder, texts[0]) @ head.T).argmax(1) == texts[1]).float().mean().item()


def train_expert(
    name: str, base: Path, head: Float[Tensor, "C d"], splits: dict[str, Split], path: Path, seed: int
) -> None:
    """Writes an expert in float16 to `path`, unless it is there."""
    if path.exists():
        return
    started = time.monotonic()
    encoder = read_encoder(base).to(Fabric(devices=1).device)
    before = accuracy(encoder, head, splits["validation"])
    finetune(encoder, TASKS[name], splits["train"], head, seed)
    after = accuracy(encoder, head, splits["validation"])
    weights = {key: weight.half().cpu().contiguous() for key, weight in encoder.state_dict().items()}
    pretrained = load_file(base / "base.safetensors")
    norm = sum((weights[key].float() - pretrained[key].float()).square().sum().item() for key in weights) ** 0.5
    seconds = time.monotonic() - started
    note = {"base": before, "validation": after, "task_vector_norm": norm, "seconds": seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path.with_suffix(".part"), {key: f"{value:.4f}" for key, value in note.items()} | {"task": name})
    path.with_suffix(".part").replace(path)
    print(f"expert {name}: validation {before:.3f} -> {after:.3f}, task vector {norm:.2f}, {seconds:.0f} s", flush=True)


def expert_note(path: Path) -> dict[str, str]:
    """What an expert's file says of how it was made."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
