"""Peak memory of adaptation, for models of ViT-B/32's shape: a CART bank at 8 %, 16 images per task, on the CPU.

Makes a bank of every size once (random factors: memory does not ask what is in them), then adapts it in a process of
its own and reads the most memory that this process ever had, mapped files included.

    python scripts/bench_adaptation_memory.py                        # 2, 8 and 20 tasks, task by task
    python scripts/bench_adaptation_memory.py --tasks 8 --microbatch all
    python scripts/bench_adaptation_memory.py --tasks 8 --taught     # by what the bank itself holds of the experts
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

CONFIG, CLASSES, IMAGES, RATIO = "ViT-B-32", 100, 16, 0.08


def make_bank(folder: Path, tasks: int) -> None:
    """A bank and heads of that many tasks, in `folder`."""
    import open_clip
    from safetensors.torch import save_file

    from lit_merge import LowRank, TaskBank
    from lit_merge.bank.low_rank import rank_of
    from lit_merge.experts.matrices import select_matrices

    torch.manual_seed(0)
    origin = {name: value.clone() for name, value in open_clip.create_model(CONFIG).visual.state_dict().items()}
    block = select_matrices({name: tuple(value.shape) for name, value in origin.items()}, "block")
    names = tuple(f"task{i}" for i in range(tasks))
    deltas: dict[str, LowRank | Tensor] = {}
    for name, value in origin.items():
        if name in block:
            m, n = value.shape
            k = rank_of(RATIO, m, n)
            deltas[name] = LowRank(
                normalize(torch.randn(tasks, m, k), dim=1),
                torch.rand(tasks, k).sort(descending=True).values / 50,
                normalize(torch.randn(tasks, n, k), dim=1),
            )
        else:
            deltas[name] = 1e-4 * torch.randn(tasks, *value.shape)
    about = {"class_path": "CART", "init_args": {"rank_ratio": RATIO, "scaling": 1.0}}
    dtypes = {name: value.dtype for name, value in origin.items()}
    TaskBank(names, origin, deltas, torch.ones(tasks, len(deltas)), dtypes, about).save(folder / "bank", overwrite=True)
    width = origin["proj"].shape[1]
    save_file({name: normalize(torch.randn(CLASSES, width), dim=1) for name in names}, folder / "heads.safetensors")


def adapt_once(folder: Path, microbatch: str, checkpointing: bool, precision: str, taught: bool) -> None:
    """One step, in this process; prints what it took as JSON."""
    import lightning.pytorch as pl
    import open_clip  # noqa: F401  what is imported anyway

    from lit_merge import Correction, MergedModel, OpenClipImageEncoder, Stage, TaskBank
    from lit_merge.objectives import ExpertAgreement

    imports = peak()
    bank = TaskBank.load(folder / "bank")
    network = OpenClipImageEncoder(CONFIG, str(folder / "heads.safetensors"))
    options: dict[str, Any] = {"microbatch": microbatch, "gradient_checkpointing": checkpointing}
    if taught:
        options |= {"objective": ExpertAgreement(), "correction": Correction(32)}
    model = MergedModel(bank, network, stages=[Stage("direction" if taught else "layer", 1, 1e-3)], **options)
    generator = torch.Generator().manual_seed(0)
    batch = {
        task: torch.randint(0, 256, (IMAGES, 3, 224, 224), dtype=torch.uint8, generator=generator)
        for task in bank.tasks
    }
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        precision=precision,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(model, torch.utils.data.DataLoader([batch], batch_size=None))
    moved = (model.coefficients() - 1).abs().max().item()
    assert 0 < moved < 0.01
    said = {"peak": peak(), "imports": imports, "seconds": time.perf_counter() - start, "bank": bank.nbytes / 1e9}
    print(json.dumps(said))


def peak() -> float:
    """The most resident memory so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 8, 20])
    parser.add_argument("--microbatch", choices=("task", "all"), default="task")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--taught", action="store_true", help="directions and a correction of rank 32, by the experts")
    parser.add_argument("--folder", type=Path, help="where the banks go; a temporary folder by default")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        adapt_once(options.one, options.microbatch, options.gradient_checkpointing, options.precision, options.taught)
        return 0
    own = [
        *(["--gradient-checkpointing"] if options.gradient_checkpointing else []),
        *(["--taught"] if options.taught else []),
    ]
    own += ["--microbatch", options.microbatch, "--precision", options.precision]
    print(f"{CONFIG}, CART at {RATIO:.0%}, {IMAGES} images a task, {' '.join(own)}, torch {torch.__version__}, CPU")
    print("| tasks | peak, GB | of it imports | bank, GB | seconds a step |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for tasks in options.tasks:
            folder = (options.folder or Path(temporary)) / str(tasks)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "bank").exists():
                # In a process of its own: what it takes must not count.
                code = f"from bench_adaptation_memory import *; make_bank(Path({str(folder)!r}), {tasks})"
                subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)
            command = [sys.executable, __file__, "--one", str(folder), *own]
            said = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            row = (said["peak"], said["imports"], said["bank"])
            print(f"| {tasks} | {' | '.join(f'{one:.2f}' for one in row)} | {said['seconds']:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
