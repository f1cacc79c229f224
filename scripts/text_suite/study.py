"""How well are scale and rank chosen without labels? lit_merge's rules, and others, on a suite of texts or images.

Every point of a grid is read once: validation inputs with labels, unlabelled ones without. Each rule then chooses,
looking at 64 or at 480 unlabelled inputs of every task, and only what it chose is read on the test inputs.
Goes on where it was cut off: every reading is kept in the output folder.

    python scripts/text_suite/study.py text:0
    python scripts/text_suite/study.py text:0 text:1 text:2 zoo:8 --print    # the tables of what is measured already
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from suites import open_suite

from lit_merge import CART, ESM, TSVM, IsoC, MergeError, MergeMethod, TaskArithmetic, build_bank
from lit_merge.checkpoints import write_text
from lit_merge.choose.activations import collect_moments
from lit_merge.choose.sweep import Grid
from text_suite.bench import Bench
from text_suite.records import file_name
from text_suite.tables import report

NORMAL = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
RATIOS = (0.04, 0.08, 0.16, 0.32, 0.64)
SCALES = {"text": (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), "zoo": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0)}
# Of the self-consistent scale, for ESM: its directions have norm 1, so that its scale is the task vectors' own.
MULTIPLES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0, 1.25)
COUNTS = (64, 480)
METHODS = ("CART", "TaskArithmetic", "TSVM", "IsoC", "ESM")


def grids(bench: Bench, kind: str, esm: bool) -> Iterator[Grid]:
    """What is read, ESM last; CART's scales differ between texts and images."""
    yield Grid((CART(),), RATIOS, SCALES[kind])
    yield Grid((TaskArithmetic(),), scalings=(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6))
    yield Grid((TSVM(), IsoC()), scalings=NORMAL)
    if esm:
        moments = collect_moments(bench.experts, bench.network, bench.data.unlabelled())
        bank = build_bank(bench.experts, method=ESM(moments=moments, scaling="self_consistent"))
        consistent = bank.method["chosen"]["scaling"]  # type: ignore[index]
        yield Grid((ESM(moments=moments),), scalings=tuple(round(consistent * one, 4) for one in MULTIPLES))


def measure(suite: str, output: Path, esm: bool, only_print: bool) -> str:
    """Reads what is missing, and answers the report."""
    bench, started = Bench(open_suite(suite), output, max(COUNTS)), time.monotonic()
    methods: dict[str, MergeMethod] = {}
    for grid in () if only_print else grids(bench, suite.partition(":")[0], esm):
        methods |= {type(method).__name__: method for method in grid.methods}
        for point in bench.read(grid):
            accuracy, seconds = 100 * (point.accuracy or 0.0), time.monotonic() - started
            said = f"validation {accuracy:.1f}, entropy {point.entropy:.3f}, agreement {100 * point.agreement:.1f}"
            print(f"{suite} {file_name(point)}: {said}, {seconds:.0f} s", flush=True)
    read = {name: found for name in METHODS if (found := bench.records(name))}
    studies = {count: {name: bench.study(records, count) for name, records in read.items()} for count in COUNTS}
    choices = {count: {name: one.choices() for name, one in named.items()} for count, named in studies.items()}
    chosen = [point for named in choices.values() for rules in named.values() for point in rules.values()]
    for tested in bench.test(methods, chosen):
        print(f"{suite} {tested}: test {100 * bench.tested(tested):.1f}", flush=True)
    kept = {
        "points": [vars(point) for one in studies[max(COUNTS)].values() for point in one.points()],
        "choices": {
            str(count): {name: {rule: vars(point) for rule, point in rules.items()} for name, rules in named.items()}
            for count, named in choices.items()
        },
        "test": bench.tests,
    }
    write_text(output / "study.json", json.dumps(kept, indent=1) + "\n", overwrite=True)
    return report(bench, choices, read)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", help="text:SEED, or zoo:8 and its like")
    parser.add_argument("--output", type=Path, default=Path("runs/choosing"), help="(default: %(default)s)")
    parser.add_argument("--no-esm", action="store_true", help="leave out ESM, which needs second moments")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    options = parser.parse_args()
    for suite in options.suites:
        try:
            folder = options.output / suite.replace(":", "-")
            print(f"{suite}: {measure(suite, folder, not options.no_esm, options.print)}", flush=True)
        except MergeError as error:
            print(f"study: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
