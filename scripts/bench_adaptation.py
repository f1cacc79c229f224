"""What a step of adaptation costs: against the forward and backward of its images alone, and against FusionBench.

Makes experts of a CLIP image tower (random: neither time nor memory asks what is in them), and lets these take one step
after the other, in turns, each in a process of its own:

- `plain`: forward and backward of all images of the step in one batch, with the gradient to every weight: the bound;
- `dense`: a fit of lit_merge's, layer-wise AdaMerging on task vectors;
- `cart`: the same from a CART bank at rank .08;
- `directions`: a coefficient for every singular direction of this bank, by the experts, who are asked at every step;
- `corrected`: with a shared correction of rank 32, too;
- `peer`: FusionBench's layer-wise AdaMerging, its own loop, on the same experts and images.

Seconds are those of the process's CPU, the median over steps after the first. The peak is the most resident memory that
a process ever had; of mapped files, libraries among them, it counts what lay in memory at the time.
`dense` and `peer` are the same method: their λ are compared at the end.

    python scripts/bench_adaptation.py                                     # a small tower, 2 and 8 tasks
    python scripts/bench_adaptation.py --shape ViT-B-32 --tasks 8 --peer-python peer/bin/python
    python scripts/bench_adaptation.py --tasks 2 4 8 14 20 --peer-python peer/bin/python

`--peer-python` names a Python that has torch, lightning, open_clip and fusion_bench 0.2.33 (its hydra-core wants
another omegaconf than lit_merge, hence an environment of its own). Without it the peer is left out. All of them at once
need 24 GB with eight tasks of ViT-B/32: where the kernel has to drop the banks' pages, `--only plain dense cart` and
`--only dense peer` one after the other tell more.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench_adaptation_workers import MEAN, START, STD, tower
from torch.nn.functional import normalize

from lit_merge import CART, TaskArithmetic, build_bank

WORKERS = Path(__file__).with_name("bench_adaptation_workers.py")
CLASSES = 100
BANKS = {"dense": TaskArithmetic(START), "cart": CART(rank_ratio=0.08, scaling=START)}
# What is learnt of a CART bank by the experts.
TAUGHT: dict[str, dict[str, Any]] = {
    "directions": {"bank": "cart", "granularity": "direction"},
    "corrected": {"bank": "cart", "granularity": "direction", "correction": 32},
}
ALL = ("plain", *BANKS, *TAUGHT, "peer")
# ViT-B/32's proportions, 50 tokens among them, at a hundredth of its work.
SMALL = {"embed_dim": 128, "vision_cfg": {"image_size": 112, "layers": 4, "width": 192, "patch_size": 16}}


def make_experts(
    folder: Path, options: argparse.Namespace, tasks: list[str], banks: Sequence[str] = tuple(BANKS)
) -> int:
    """Everything that the workers read, in `folder`; answers the side of the images."""
    from open_clip.factory import get_model_config
    from safetensors.torch import save_file

    config = SMALL if options.shape == "small" else get_model_config(options.shape)
    assert config is not None, f"no open_clip configuration {options.shape}"
    config = config | {"preprocess_cfg": {"mean": [MEAN] * 3, "std": [STD] * 3}}
    config["vision_cfg"] = config["vision_cfg"] | ({"layers": options.layers} if options.layers else {})
    (folder / "network.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    weights = {name: value.detach().clone() for name, value in tower(folder).state_dict().items()}
    save_file(weights, folder / "pretrained.safetensors")
    (folder / "experts").mkdir()
    files = {task: folder / "experts" / f"{task}.safetensors" for task in tasks}
    for file in files.values():
        changes = {name: 0.1 * (v.std(correction=0) + 0.01) * torch.randn_like(v) for name, v in weights.items()}
        save_file({name: value + changes[name] for name, value in weights.items()}, file)
    width = config["embed_dim"]
    save_file({task: normalize(torch.randn(CLASSES, width), dim=1) for task in tasks}, folder / "heads.safetensors")
    for name in banks:
        build_bank(files, base=folder / "pretrained.safetensors", method=BANKS[name]).save(folder / name)
    return config["vision_cfg"]["image_size"]


class Worker:
    """One of the processes that are compared."""

    def __init__(self, kind: str, python: str, **said: Any) -> None:
        command = [python, str(WORKERS), json.dumps({"kind": kind, **said})]
        environment = os.environ | {"OMP_NUM_THREADS": str(said["threads"]), "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.steps: list[dict[str, Any]] = []
        self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.process.args[:2])} ended before its step")  # type: ignore[index]
        found: dict[str, Any] = json.loads(line)
        return found

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.steps.append(self.read())

    def median(self, what: str) -> float:
        return statistics.median(step[what] for step in self.steps[1:] or self.steps)

    @property
    def last(self) -> dict[str, Any]:
        return self.steps[-1]


def compare(folder: Path, tasks: list[str], options: argparse.Namespace) -> None:
    """One size: makes the experts, takes the steps in turns, prints a row for each of the workers."""
    size = make_experts(folder, options, tasks)
    common = {"folder": str(folder), "tasks": tasks, "steps": options.steps, "count": options.images, "size": size}
    common |= {"threads": options.threads, "precision": options.precision}
    own = common | {"microbatch": options.microbatch, "gradient_checkpointing": options.gradient_checkpointing}
    kinds = {"plain": ("plain", sys.executable, common)}
    kinds |= {name: ("ours", sys.executable, own | {"bank": name}) for name in BANKS}
    kinds |= {name: ("ours", sys.executable, own | learnt) for name, learnt in TAUGHT.items()}
    if options.peer_python:
        kinds["peer"] = ("peer", options.peer_python, common)
    workers = {
        name: Worker(kind, python, **said) for name, (kind, python, said) in kinds.items() if name in options.only
    }
    for _ in range(options.steps):
        for worker in workers.values():
            worker.step()
    work = workers["plain"].read()["tflop"] if "plain" in workers else math.nan
    bound = workers["plain"].median("cpu") if "plain" in workers else math.nan
    for name, worker in workers.items():
        cpu, wall = worker.median("cpu"), worker.median("seconds")
        row = f"{len(tasks)} | {name} | {work:.3f} | {cpu:.3f} | {wall:.3f} | {cpu / bound:.2f}"
        print(f"| {row} | {worker.last['peak']:.2f} | {worker.last.get('mapped', math.nan):.2f} |", flush=True)
        worker.process.communicate()
    if {"dense", "peer"} <= workers.keys():
        ours, theirs = (workers[name].last["coefficients"] for name in ("dense", "peer"))
        assert ours.keys() == theirs.keys()
        apart = sorted(abs(a - b) for name in ours for a, b in zip(ours[name], theirs[name], strict=True))
        said = f"differences: median {statistics.median(apart):.1e}, 99 % {apart[int(0.99 * len(apart))]:.1e}"
        moved = max(abs(a - START) for values in ours.values() for a in values)
        print(f"\nλ after {options.steps} steps: moved by up to {moved:.1e}; {said}, largest {apart[-1]:.1e}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", help="small, or the name of an open_clip model, as ViT-B-32")
    parser.add_argument("--layers", type=int, help="only so many blocks of it")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--images", type=int, default=16, help="of every task, a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--microbatch", choices=("task", "all"), default="task")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--peer-python", help="a Python that has fusion_bench")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, help="all of them by default")
    parser.add_argument("--folder", type=Path, help="where experts go while it runs; a temporary folder by default")
    options = parser.parse_args()
    blocks = f", {options.layers} blocks" if options.layers else ""
    print(f"{options.shape}{blocks}, {options.images} images a task, microbatch {options.microbatch}, ", end="")
    print(f"{options.precision}, {options.threads} threads, torch {torch.__version__}\n")
    print("| tasks | what | TFLOP of plain | CPU s | s | of plain | peak, GB | mapped files, GB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for count in options.tasks:
            folder = Path(temporary) / str(count)
            folder.mkdir()
            compare(folder, [f"task{i:02}" for i in range(count)], options)
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
