"""What it costs that the disk holds an output before it gets its name: wall time with and without, in turn, in one run.

    python scripts/bench_lasting.py --folder runs/lasting     # on the disk that is measured

Without means that `os.fsync` does nothing. Between two outputs nothing else is written by this process; what others
write to the same disk counts too, so the ratio of the medians stands with the quartiles of the pairs' ratios.
"""

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles

from lit_merge import CART, build_bank, merge_files
from lit_merge.checkpoints import write_text
from lit_merge.checkpoints.locations import resolve


@contextlib.contextmanager
def kept(asked: bool) -> Iterator[None]:
    """Inside, the disk is asked to keep files, or is not."""
    sync = os.fsync
    if not asked:
        os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = sync


def outputs(folder: Path) -> dict[str, Callable[[], object]]:
    """What is written, by names for people."""
    experts = {path.stem: path for path in sorted((resolve("zoo:8") / "experts").glob("*.safetensors"))}
    bank = build_bank(experts, method=CART(rank_ratio=0.16))
    merged = folder / "merged.safetensors"
    return {
        "merge of eight experts, 3.3 MB": lambda: merge_files(experts, merged, method=CART(0.16), overwrite=True),
        "bank of eight experts, 10.8 MB": lambda: bank.save(folder / "bank", overwrite=True),
        "a line of text": lambda: write_text(folder / "line.txt", "x\n", overwrite=True),
    }


def measure(write: Callable[[], object], pairs: int) -> list[tuple[float, float]]:
    """Seconds with and without, of pairs in alternating order."""
    write()
    found = []
    for i in range(pairs):
        seconds = {}
        for asked in (i % 2 == 0, i % 2 == 1):
            with kept(asked):
                start = time.perf_counter()
                write()
                seconds[asked] = time.perf_counter() - start
        found.append((seconds[True], seconds[False]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, write in outputs(options.folder).items():
        pairs = measure(write, options.pairs)
        with_it, without = (median(column) for column in zip(*pairs, strict=True))
        low, _, high = quantiles([a / b for a, b in pairs], n=4)
        print(
            f"{name}: {1000 * with_it:.1f} ms with, {1000 * without:.1f} ms without, "
            f"ratio {with_it / without:.2f} (quartiles of pairs {low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
