"""How long commands of the package take to start, in CPU seconds and next to `import torch`.

    python scripts/bench_start.py

Runs every command some times in turn and prints the best of each. Those above the line must stay below 5 seconds and
twice `import torch`, and import neither Lightning, torchmetrics, transformers nor open_clip.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("lightning", "torchmetrics", "transformers", "open_clip")
CONFIG = ("--config", str(ROOT / "configs" / "cart.yaml"))
PROGRAM = f"""
import sys
from lit_merge.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
print("loaded", *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""
VERBS = (
    "fit",
    "validate",
    "test",
    "predict",
    "merge",
    "export",
    "sweep",
    "analyze",
    "inspect",
    "bank",
    "convert",
    "leaks",
    "zoo",
)


def seconds(*command: str) -> tuple[float, str]:
    """CPU seconds of a command, and what it loaded of the heavy packages."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = done.stderr.rpartition("loaded")[2].strip()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often every command runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        bank = f"{place}/bank"
        seconds("-c", PROGRAM, "export", *CONFIG, "--output", bank)
        wrong = ("fit", *CONFIG, "--run", f"{place}/run")
        commands = {
            **{f"{verb} --help": (verb, "--help") for verb in VERBS},
            "inspect of a bank": ("inspect", bank),
            "fit, an unknown option": (*wrong, "--model.stagess", "3"),
            "fit, an unknown Trainer option": (*wrong, "--trainer.max_step", "3"),
            "fit, a wrong value": (*wrong, "--model.sharpness", "much"),
            "fit, an unknown method": (*wrong, "--model.method", "CARTT"),
            "fit, a missing expert": (*wrong, "--model.experts.mnist", "nowhere.safetensors"),
            "fit, an existing output": ("fit", *CONFIG, "--run", bank),
            "merge, an existing output": ("merge", *CONFIG, "--output", bank),
            "merge of the suite by CART": ("merge", *CONFIG, "--output", f"{place}/merged.safetensors", "--overwrite"),
            "merge --dry-run": ("merge", *CONFIG, "--dry-run"),
            "export of a bank": ("export", *CONFIG, "--model.bank", bank, "--output", f"{place}/small", "--overwrite"),
            "leaks of the suite": ("leaks", *CONFIG),
        }
        best: dict[str, float] = {}
        heavy: dict[str, str] = {}
        for _ in range(options.rounds):
            for name, command in {"import torch": (), **commands}.items():
                program = "import torch" if not command else PROGRAM
                taken, heavy[name] = seconds("-c", program, *command)
                best[name] = min(best.get(name, taken), taken)
    for name, taken in best.items():
        ratio = taken / best["import torch"]
        print(f"{name:32} {taken:6.2f} s  {ratio:5.2f} times import torch  {heavy[name]}")


if __name__ == "__main__":
    main()
