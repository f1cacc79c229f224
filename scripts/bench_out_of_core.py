"""Memory and time of merges that are larger than memory: most resident memory, and time against tasks and parameters.

Writes experts of a model's shapes once (values are random, which neither memory nor reading asks about), then runs the
command line in processes of its own and reads what the kernel counts of each: `ru_maxrss`, mapped files included, and
CPU seconds. Fewer tasks are the first of the experts, fewer parameters the first of the blocks.

    python scripts/bench_out_of_core.py --model vit-l-14 --tasks 20 --folder /big/disk/bench --method CART  # 26 GB
    python scripts/bench_out_of_core.py --model llm-2b --tasks 3 --verb merge --folder /big/disk/bench     # 16 GB
    python scripts/bench_out_of_core.py --model tiny --tasks 4                                    # seconds
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
POOL = 2**26
"""Random numbers that all weights are cut from."""


class Model(NamedTuple):
    """Shapes of a model's weights outside its blocks, and in each of so many blocks."""

    outside: Shapes
    block: Shapes
    blocks: int
    dtype: torch.dtype
    sharded: bool

    @property
    def shapes(self) -> Shapes:
        inside = {name.replace("#", str(i)): shape for i in range(self.blocks) for name, shape in self.block.items()}
        return self.outside | inside

    def parameters(self, blocks: int) -> int:
        return _count(self.outside) + blocks * _count(self.block)


def image_tower(width: int, blocks: int, patch: int, tokens: int, embed: int) -> Model:
    """An open_clip vision transformer in float32, in one file."""
    block = "transformer.resblocks.#."
    inside = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    } | {f"ln_{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")}
    outside = {
        "class_embedding": (width,),
        "positional_embedding": (tokens, width),
        "proj": (width, embed),
        "conv1.weight": (width, 3, patch, patch),
    } | {f"ln_{where}.{part}": (width,) for where in ("pre", "post") for part in ("weight", "bias")}
    return Model(outside, {block + name: shape for name, shape in inside.items()}, blocks, torch.float32, False)


def language_model(width: int, blocks: int, inner: int, keys: int, vocabulary: int) -> Model:
    """A Llama in bfloat16, in shards with an index."""
    projections = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    inside = {f"model.layers.#.{name}.weight": shape for name, shape in projections.items()}
    tables = {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    return Model(tables | {"model.norm.weight": (width,)}, inside, blocks, torch.bfloat16, True)


MODELS = {
    "vit-l-14": image_tower(1024, 24, 14, 257, 768),
    "llm-2b": language_model(2048, 24, 8192, 512, 128_256),
    "tiny": image_tower(64, 4, 8, 17, 32),
}
METHODS = {
    "WeightAveraging": {"class_path": "WeightAveraging"},
    "TaskArithmetic": {"class_path": "TaskArithmetic"},
    "CART": {"class_path": "CART"},
    "TIES": {"class_path": "TIES"},
}


class Run(NamedTuple):
    """What one command took."""

    tasks: int
    parameters: int
    read: int
    written: int
    peak: int
    cpu: float
    wall: float


def write_experts(folder: Path, model: Model, tasks: int) -> None:
    """Base and experts; each differs from the base in every weight."""
    from lit_merge.checkpoints import write_stream

    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    shapes, dtypes = model.shapes, dict.fromkeys(model.shapes, model.dtype)
    for task in range(-1, tasks):
        path = folder / ("base" if task < 0 else f"task{task}")
        path = path if model.sharded else path.with_suffix(".safetensors")
        if not path.exists():
            limit = 2 * 10**9 if model.sharded else None
            write_stream(path, _values(pool, shapes, task), shapes, dtypes, limit, {"format": "pt"})


def _values(pool: Tensor, shapes: Shapes, task: int) -> Iterator[tuple[str, Tensor]]:
    for i, (name, shape) in enumerate(shapes.items()):
        value = _cut(pool, 7919 * i, math.prod(shape))
        if task >= 0:
            value = value + 0.05 * _cut(pool, 104_729 * (task + 1) + 31 * i, math.prod(shape))
        yield name, value.view(shape)


def _cut(pool: Tensor, start: int, count: int) -> Tensor:
    start %= len(pool) // 2
    repeats = -(-(start + count) // len(pool))
    return pool.repeat(repeats)[start : start + count] if repeats > 1 else pool[start : start + count]


def measure(folder: Path, model: Model, options: argparse.Namespace, tasks: int, blocks: int) -> Run:
    """Runs the verb on the first tasks and blocks, and removes what it wrote."""
    suffix = "" if model.sharded else ".safetensors"
    left_out = [f"*.{i}.*" for i in range(blocks, model.blocks)]
    about = {
        "experts": {f"task{i}": str(folder / f"task{i}{suffix}") for i in range(tasks)},
        "base": str(folder / f"base{suffix}"),
        "exclude": left_out,
        "method": METHODS[options.method],
    }
    config, output, log = folder / "config.yaml", folder / "output", folder / "log"
    config.write_text(json.dumps({"model": about}))
    command = [sys.executable, "-m", "lit_merge", options.verb, "--config", str(config), "--output", str(output)]
    start = time.perf_counter()
    with log.open("wb") as said:
        process = subprocess.Popen([*command, "--overwrite"], stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {log.read_text()}")
    written = sum(path.stat().st_size for path in output.rglob("*"))
    shutil.rmtree(output)
    parameters = model.parameters(blocks)
    read = (tasks + (options.method in ("TaskArithmetic", "TIES"))) * parameters * model.dtype.itemsize
    # Linux counts kilobytes, macOS bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(tasks, parameters, read, written, peak, usage.ru_utime + usage.ru_stime, wall)


def steps(whole: int, least: int = 1) -> list[int]:
    """A quarter, a half, three quarters and all."""
    return sorted({max(least, round(whole * share)) for share in (0.25, 0.5, 0.75, 1.0)})


def said(runs: list[Run], verb: str, method: str) -> str:
    """A table of runs."""
    lines = [f"{verb}, {method}", "tasks  parameters  read GB  written GB  peak MB   CPU s  wall s"]
    lines += [
        f"{run.tasks:5d}  {run.parameters / 1e6:8.1f} M  {run.read / 1e9:7.2f}  {run.written / 1e9:10.2f}  "
        f"{run.peak / 1e6:7.0f}  {run.cpu:6.1f}  {run.wall:6.1f}"
        for run in runs
    ]
    return "\n".join(lines)


def draw(curves: dict[str, tuple[list[float], list[Run]]], path: Path) -> None:
    """CPU time against tasks and against parameters, with the straight line that is nearest."""
    from matplotlib.figure import Figure

    from lit_merge.report.accuracy_figure import COLOURS
    from lit_merge.report.figure_files import save_figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    for axes, (label, (places, runs)) in zip(figure.subplots(1, 2), curves.items(), strict=True):
        seconds = [run.cpu for run in runs]
        axes.plot(places, seconds, "o", color=COLOURS["adapted"])
        slope, start = line(places, seconds)
        ends = [0.0, max(places)]
        axes.plot(ends, [start + slope * x for x in ends], color=COLOURS["static"], linewidth=1)
        axes.set(xlabel=label, ylabel="CPU time (s)", xlim=(0, None), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, overwrite=True)


def line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and start of the straight line nearest to these points."""
    places = torch.stack([torch.tensor(x), torch.ones(len(x))], 1).double()
    slope, start = torch.linalg.lstsq(places, torch.tensor(y).double()).solution.tolist()
    return slope, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--verb", choices=("export", "merge"), default="export")
    parser.add_argument("--method", choices=METHODS, default="TaskArithmetic")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="of the files; the model's by default"
    )
    parser.add_argument("--folder", type=Path, help="where the experts are written; a temporary folder by default")
    parser.add_argument("--figure", type=Path, help="where the curves are drawn, .svg or .png")
    parser.add_argument("--no-curves", action="store_true", help="only the run with all tasks and parameters")
    parser.add_argument("--keep", action="store_true", help="keep the experts for another run")
    options = parser.parse_args()
    model = MODELS[options.model]
    model = model if options.dtype is None else model._replace(dtype=getattr(torch, options.dtype))
    folder = options.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # In a process of its own: on Linux the memory of a process that starts another counts as the other's too.
        writer = get_context("spawn").Process(target=write_experts, args=(folder, model, options.tasks))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit("the experts could not be written")
        counts, blocks = steps(options.tasks, 2), steps(model.blocks)
        if options.no_curves:
            counts, blocks = [], []
        whole = measure(folder, model, options, options.tasks, model.blocks)
        by_tasks = [measure(folder, model, options, n, model.blocks) for n in counts[:-1]] + [whole]
        by_blocks = [measure(folder, model, options, options.tasks, n) for n in blocks[:-1]]
        print(said([*by_tasks[:-1], *by_blocks, whole], options.verb, options.method))
        if by_blocks:
            curves = {
                "tasks": ([float(run.tasks) for run in by_tasks], by_tasks),
                "million parameters": ([run.parameters / 1e6 for run in [*by_blocks, whole]], [*by_blocks, whole]),
            }
            for label, (places, runs) in curves.items():
                slope, start = line(places, [run.cpu for run in runs])
                off = max(abs(run.cpu - start - slope * x) / run.cpu for x, run in zip(places, runs, strict=True))
                print(f"CPU seconds = {start:.1f} + {slope:.3f} × {label}, at most {100 * off:.0f} % off")
            if options.figure:
                draw(curves, options.figure)
    finally:
        if not options.keep:
            for path in [*folder.glob("task*"), *folder.glob("base*"), folder / "config.yaml", folder / "log"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if options.folder is None:
                folder.rmdir()


def _count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


if __name__ == "__main__":
    main()
