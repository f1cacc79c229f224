"""CPU time and memory of merging eight experts of ViT-B/32's size: lit_merge, FusionBench, and whole SVDs.

Makes the files once: a base of open_clip's image tower with random weights, and experts whose task vectors have in
every matrix singular values like fine-tuning's, i^-0.6. Then every merge runs in a process of its own, in turn and in
alternating order. What counts is the CPU time of all threads from opening the files to the merged weights written, and
the most memory that the process ever had, imports included.

    python scripts/bench_merge.py --folder runs/bench                                # 3.2 GB of files, kept
    python scripts/bench_merge.py --folder runs/bench --peer-python venv-peer/bin/python --rounds 3

FusionBench needs another omegaconf than lit_merge does (hydra-core holds it back): it takes a virtual environment of
its own, of which --peer-python names the interpreter:

    python -m venv venv-peer && venv-peer/bin/pip install fusion-bench==0.2.33 open_clip_torch
"""

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_adaptation_workers import memory
from torch import Tensor

CONFIG, TASKS = "ViT-B-32", 8
# Norm of a task vector over that of its weight.
RELATIVE = 0.02
METHODS = ("WeightAveraging", "TIES", "CART", "TSVM", "IsoC")
DECOMPOSE = ("CART", "TSVM", "IsoC")
Run = dict[str, float]


def make_files(folder: Path) -> None:
    """Base and experts, where they are not there yet."""
    import open_clip
    from safetensors.torch import save_file

    done = folder / "done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    base = {name: value.clone() for name, value in open_clip.create_model(CONFIG).visual.state_dict().items()}
    save_file(base, folder / "base.safetensors")
    for path in sources(folder).values():
        save_file({name: tuned(value) for name, value in base.items()}, path)
        print(f"made {path}", file=sys.stderr)
    done.touch()


def tuned(weight: Tensor) -> Tensor:
    """A weight with a task vector of some per cent of it."""
    if weight.ndim != 2:
        return weight + RELATIVE * weight.std().nan_to_num(1.0) * torch.randn_like(weight)
    values = torch.arange(1, min(weight.shape) + 1).pow(-0.6)
    u, v = (torch.linalg.qr(torch.randn(side, len(values))).Q for side in weight.shape)
    vector = (u * values) @ v.T
    return weight + RELATIVE * weight.norm() / vector.norm() * vector


def sources(folder: Path) -> dict[str, Path]:
    return {f"expert{t}": folder / f"expert{t}.safetensors" for t in range(TASKS)}


def ours(folder: Path, name: str, output: Path, exact: bool) -> Callable[[], None]:
    """The function that the verb `merge` is made of."""
    import lit_merge

    options: dict[str, Any] = {"CART": {"rank_ratio": 0.08, "scaling": 2.0}, "TIES": {"merge": "sum"}}
    method, merge_files = getattr(lit_merge, name)(**options.get(name, {})), lit_merge.merge_files
    svd = "exact" if exact else "auto"

    def work() -> None:
        merge_files(sources(folder), output, folder / "base.safetensors", method=method, svd=svd, overwrite=True)

    return work


def peer(folder: Path, name: str, output: Path) -> Callable[[], None]:
    """FusionBench's own class on modules that a pool loads from the same files, one at a time where it asks so."""
    import open_clip
    from fusion_bench import BaseModelPool
    from fusion_bench.method import SimpleAverageAlgorithm, TaskSingularVectorMerging, TiesMergingAlgorithm
    from fusion_bench.method.isotropic_merging import ISO_C_Merge
    from safetensors.torch import load_file, save_file

    algorithm = {
        "WeightAveraging": lambda: SimpleAverageAlgorithm(),
        "TIES": lambda: TiesMergingAlgorithm(scaling_factor=1.0, threshold=20, remove_keys=[], merge_func="sum"),
        "TSVM": lambda: TaskSingularVectorMerging(),
        "IsoC": lambda: ISO_C_Merge(scaling_factor=1.0),
    }[name]()
    # Drawing random weights is no part of a merge: every model is a copy of one.
    tower = open_clip.create_model(CONFIG).visual

    class Pool(BaseModelPool):  # type: ignore[misc]
        def load_model(self, model_name_or_config: Any, *args: Any, **kwargs: Any) -> torch.nn.Module:
            import copy

            file = "base" if model_name_or_config == "_pretrained_" else model_name_or_config
            model = copy.deepcopy(tower)
            model.load_state_dict(load_file(folder / f"{file}.safetensors"))
            return model

    pool = Pool({"_pretrained_": None, **dict.fromkeys(sources(folder))})

    def work() -> None:
        merged = algorithm.run(pool)
        save_file({name: value.contiguous() for name, value in merged.state_dict().items()}, output)

    return work


def run_one(folder: Path, who: str, name: str) -> None:
    """One merge in this process; prints what it took as JSON."""
    output = folder / f"merged-{who}-{name}.safetensors"
    work = peer(folder, name, output) if who == "peer" else ours(folder, name, output, who == "exact")
    cpu, wall = time.process_time(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    taken = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    print(json.dumps(taken | memory()))


def difference(folder: Path, name: str, other: str) -> float:
    """The largest relative difference of a tensor between our merge and another."""
    from safetensors.torch import load_file

    one, two = (load_file(folder / f"merged-{who}-{name}.safetensors") for who in ("ours", other))
    return max(((one[key] - value).norm() / value.norm()).item() for key, value in two.items() if value.norm())


def row(name: str, runs: dict[str, list[Run]], apart: dict[str, float]) -> str:
    cpu = {who: median(run["cpu"] for run in found) for who, found in runs.items()}
    peak = {who: max(run["peak"] for run in found) for who, found in runs.items()}
    cells = []
    for who in ("ours", "peer", "exact"):
        cell = f"{cpu[who]:.1f} s, {peak[who]:.2f} GB" if who in cpu else "–"
        if who in cpu and who != "ours":
            cell += f", {cpu[who] / cpu['ours']:.1f} times, differs by {apart[who]:.0e}"
        cells.append(cell)
    return f"| {name} | {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="of the files (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--peer-python", help="an interpreter that has FusionBench; ours alone without")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--against", nargs="+", default=["peer", "exact"], choices=["peer", "exact"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.folder, *options.one)
        return 0
    make_files(options.folder)
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(f"{TASKS} experts of {CONFIG}, float32; {processor()}, {threads}\n")
    print("| | lit_merge | FusionBench | whole SVDs |\n|---|---|---|---|", flush=True)
    for name in options.methods:
        runs: dict[str, list[Run]] = {"ours": []}
        known = {"peer": bool(options.peer_python) and name != "CART", "exact": name in DECOMPOSE}
        runs |= {who: [] for who in options.against if known[who]}
        for i in range(options.rounds):
            for who in runs if i % 2 == 0 else reversed(runs):
                python = options.peer_python if who == "peer" else sys.executable
                command = [python, __file__, "--folder", str(options.folder), "--one", who, name]
                # As `python -m lit_merge` sets it for itself.
                own = {} if who == "peer" else {"THP_MEM_ALLOC_ENABLE": "1"}
                said = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | own
                ).stdout
                runs[who].append(json.loads(said.splitlines()[-1]))
        apart = {who: difference(options.folder, name, who) for who in runs if who != "ours"}
        print(row(name, runs, apart), flush=True)
    return 0


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
