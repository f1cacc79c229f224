"""What corrupted images do to a merge, and what adapting on them brings back: the built-in suite, CART at λ = 1.

For every kind and severity the test images are corrupted, and so are the other images that the last column adapts on;
the one before it adapts on clean images. Goes on where it was cut off: every cell is kept as soon as it is measured.

    python scripts/bench_corruptions.py                      # all severities; adapted on those of severity 3
    python scripts/bench_corruptions.py --adapt 1 2 3 4 5 --output runs/corruptions.json
    python scripts/bench_corruptions.py --print              # the table of what is measured already
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

import torch

from lit_merge import CART, Experts, OpenClipImageEncoder, Suite, adapt, build_bank
from lit_merge.checkpoints import write_text
from lit_merge.checkpoints.locations import resolve
from lit_merge.choose.sample import Probe
from lit_merge.console import plain_warnings
from lit_merge.data.images.corruptions import LEVELS

SUITE = "zoo:8"
ROWS = ("experts", "merge", "adapted on clean images", "adapted on corrupted images")


class Bench:
    """Measures cells, in percent, into a file."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.cells: dict[str, float] = json.loads(output.read_text("utf-8")) if output.exists() else {}
        tasks = Suite(SUITE).tasks
        self.experts = Experts({task: f"{SUITE}/experts/{task}.safetensors" for task in tasks})
        folder = resolve(SUITE)
        self.network = OpenClipImageEncoder(str(folder / "network.json"), str(folder / "heads.safetensors"))
        self.bank = build_bank(self.experts, method=CART(0.16, 1.0))
        self.clean = None

    def measure(self, column: str, data: Suite, rows: Sequence[str]) -> None:
        """Every one of these rows of a column that is not known."""
        tests = Probe.labelled(self.network, data, "test")
        for row in rows:
            cell = f"{column}/{row}"
            if cell in self.cells:
                continue
            if row == "experts":
                found = mean(self.expert(tests, task) for task in data.tasks)
            else:
                found = mean(tests.read(self.adapted(row, data).merge(dtype=torch.float32)).accuracy.values())
            self.cells[cell] = round(100 * found, 2)
            write_text(self.output, json.dumps(self.cells, indent=1) + "\n", overwrite=True)
            print(f"{cell}: {self.cells[cell]:.1f}", flush=True)

    def adapted(self, row: str, data: Suite):  # type: ignore[no-untyped-def]
        if row == "merge":
            return self.bank
        if row == ROWS[-1]:
            return adapt(self.bank, self.network, data, experts=self.experts, progress=False)
        self.clean = self.clean or adapt(self.bank, self.network, Suite(SUITE), experts=self.experts, progress=False)
        return self.clean

    def expert(self, tests: Probe, task: str) -> float:
        checkpoint = self.experts.checkpoints[task]
        one = Probe(self.network, {task: tests.inputs[task]}, {task: tests.labels[task]})
        return one.read({name: checkpoint.read(name).float() for name in checkpoint.shapes}).accuracy[task]


def table(cells: dict[str, float]) -> Iterator[str]:
    """Markdown."""
    measured = {cell.rpartition("/")[0] for cell in cells}
    columns = ["clean", *(f"{kind} {severity}" for kind in LEVELS for severity in range(1, 6))]
    columns = [one for one in columns if one in measured]
    yield "| | " + " | ".join(ROWS) + " |"
    yield "|---|" + "---|" * len(ROWS)
    for column in columns:
        shown = (f"{cells[cell]:.1f}" if (cell := f"{column}/{row}") in cells else "" for row in ROWS)
        yield f"| {column} | " + " | ".join(shown) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--adapt", type=int, nargs="+", default=[3], choices=range(1, 6), help="severities (default: 3)"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/corruptions.json"), help="(default: %(default)s)")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    options = parser.parse_args()
    plain_warnings()
    bench = Bench(options.output)
    if not options.print:
        bench.measure("clean", Suite(SUITE), ROWS[:-1])
        for kind in LEVELS:
            for severity in range(1, 6):
                data = Suite(SUITE, corruption=kind, severity=severity)  # type: ignore[arg-type]
                bench.measure(f"{kind} {severity}", data, ROWS if severity in options.adapt else ROWS[:-1])
    print("\n".join(table(bench.cells)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
