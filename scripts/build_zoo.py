"""Builds the suite ("zoo"): downloads fonts, renders glyphs, trains base and experts, writes the files.

Every stage is skipped where its result exists, and training goes on from its last checkpoint: after a stop or a
kill, run the same command again. All of it takes about half an hour on two idle cores for eight tasks, where they
multiply bfloat16; a GPU is used where there is one. With --from-shipped only the tasks that the package lacks are
trained, from the base that it ships: six for 14 tasks, of two to ten minutes each on one busy core.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from zoo.problem import Problem
from zoo.stopping import Stopped, StopPoint
from zoo.tasks import SUITES

from lit_merge.checkpoints.locations import resolve


def main(argv: list[str] | None = None) -> int:
    """Runs the stages; 0 done, 1 a problem, 3 stopped in time with more to do."""
    options = _options(argv)
    try:
        _build(options)
    except Stopped:
        print("stopped in time: run the same command to go on")
        return 3
    except Problem as problem:
        print(f"build_zoo: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbuild_zoo: interrupted; run the same command to go on", file=sys.stderr)
        return 130
    return 0


def _build(options: argparse.Namespace) -> None:
    """Fonts, masters, base, experts, files."""
    try:
        import torch
        from zoo import finetuning, folder, masters, packages, pretraining, shipped
    except ModuleNotFoundError as missing:
        raise Problem(f"the package {missing.name} is missing: {_INSTALL}") from missing
    torch.set_num_threads(options.threads)
    stop, work = StopPoint(options.stop_after_minutes), options.work
    fonts = work / "fonts"
    if not (work / "masters.safetensors").exists():
        packages.download(fonts / "debs")
        packages.unpack(fonts / "debs", fonts / "unpacked")
        masters.build_masters(fonts / "unpacked", work)
    glyphs, base = masters.Masters(work), work / ("shipped" if options.from_shipped else f"base{options.base_seed}")
    base.mkdir(parents=True, exist_ok=True)
    if not (base / "base.safetensors").exists() and options.from_shipped:
        shipped.take_shipped(glyphs, resolve("zoo:8"), base)
    elif not (base / "base.safetensors").exists():
        pretraining.pretrain(glyphs, base, options.base_seed, stop)
    names = SUITES[options.tasks]
    weights, table = pretraining.read_base(base)
    finetuning.train_experts(glyphs, weights, table, names, base, options.seed, stop)
    output = options.output or _cache() / "zoo" / f"{options.tasks}-seed{options.seed}"
    source = "--from-shipped" if options.from_shipped else f"--base-seed {options.base_seed}"
    command = f"python scripts/build_zoo.py --tasks {options.tasks} --seed {options.seed} {source}"
    seeds = {"base_seed": options.base_seed, "seed": options.seed}
    folder.write_zoo(glyphs, work, base, names, output=output, command=command, **seeds)


_INSTALL = (
    "pip install 'torch>=2.9' 'lightning>=2.6.4' open_clip_torch safetensors rich fonttools pillow scikit-learn mlxtend"
)


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, choices=tuple(SUITES), default=8, help="how many tasks (default: 8)")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the experts (default: 0)")
    parser.add_argument(
        "--from-shipped",
        action="store_true",
        help="take the base, and with seed 0 the eight experts, that the package ships instead of training them",
    )
    parser.add_argument("--base-seed", type=_seed, default=0, help="seed of the base (default: 0)")
    parser.add_argument(
        "--work", type=Path, default=_cache() / "zoo-build", help="work folder, kept (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="where the zoo goes (default: <cache>/zoo/<tasks>-seed<seed>)")
    parser.add_argument("--stop-after-minutes", type=_minutes, help="stop at the first checkpoint after that long")
    parser.add_argument("--threads", type=_threads, default=2, help="CPU threads (default: 2)")
    return parser.parse_args(argv)


def _cache() -> Path:
    return Path(os.environ.get("LIT_MERGE_CACHE") or Path.home() / ".cache" / "lit_merge")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return minutes


if __name__ == "__main__":
    sys.exit(main())
