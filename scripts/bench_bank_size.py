"""Accuracy of every task, its name known, against the bytes of the bank: budgets, TSV-Compress, plain truncation.

    python scripts/bench_bank_size.py --suite zoo:8
    python scripts/bench_bank_size.py --print       # of all suites measured already, over the seeds of their experts

Banks are written to a temporary folder and read back; bytes are those of all their files. Accuracies are on test data,
means over the tasks, as shares of the experts' own. Nothing is chosen by them: every bank of a grid is shown.

- `budget`: CART with all directions, `compress_bank` at so many times one model; with `origin=base` too; and with
  errors measured on features of 64 unlabelled inputs a task instead of the Frobenius norm.
- `TSV-Compress`: float16, its own rank (1/T of the directions) and others around it.
- `truncation`: CART cut to one rank ratio for all matrices, float16.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

import torch
from suites import check_built, open_suite, over_seeds, spread

from lit_merge import CART, Probe, TaskBank, TSVCompress, build_bank
from lit_merge.choose.activations import bank_moments
from lit_merge.merge.compressed_bank import compress_bank, model_bytes

RESULTS = Path(__file__).parents[1] / "docs" / "results"
BUDGETS = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5)
ON_FEATURES = (0.6, 0.8, 1.0, 1.5)
BY_BASE = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
RATIOS = (0.02, 0.04, 0.08, 0.125, 0.16, 0.25)


class Bench:
    """One suite: its experts, and accuracies of banks of them."""

    def __init__(self, suite: str) -> None:
        opened = open_suite(suite)
        self.experts, self.network, self.data = opened.experts, opened.network, opened.data
        self.network.to("cuda" if torch.cuda.is_available() else "cpu")
        self.test = Probe.labelled(self.network, opened.data, "test")
        self.own = {
            task: self.accuracy(task, {name: one.read(name).float() for name in self.experts.shapes})
            for task, one in self.experts.checkpoints.items()
        }

    def accuracy(self, task: str, weights: dict[str, torch.Tensor]) -> float:
        probe = Probe(self.network, {task: self.test.inputs[task]}, {task: self.test.labels[task]})
        return probe.read(weights).accuracy[task]

    def row(self, kind: str, setting: str, folder: Path, base: str | None = None) -> dict[str, object]:
        """What a bank on disk brings."""
        bank = TaskBank.load(folder, base)
        found = {task: self.accuracy(task, bank.expert(task, torch.float32, "canonical")) for task in bank.tasks}
        nbytes = sum(file.stat().st_size for file in folder.iterdir())
        share = mean(found[task] / self.own[task] for task in found)
        times = nbytes / model_bytes(bank)
        print(
            f"| {kind} | {setting} | {nbytes:,} | {times:.2f} | {100 * mean(found.values()):.1f} | {100 * share:.1f} |",
            flush=True,
        )
        return {"kind": kind, "setting": setting, "bytes": nbytes, "times": times, "accuracy": found, "share": share}


def rows(bench: Bench, place: Path, base: str) -> Iterator[dict[str, object]]:
    """All points of the curves."""
    whole = build_bank(bench.experts, method=CART(rank_ratio=1.0))
    for i, times in enumerate(BUDGETS):
        compress_bank(whole, place / f"own{i}", budget=f"{times}x")
        yield bench.row("budget", f"{times}x", place / f"own{i}")
    (place / "moments").mkdir()
    moments = bank_moments(whole, bench.network, bench.data.unlabelled(), place / "moments")
    for i, times in enumerate(ON_FEATURES):
        compress_bank(whole, place / f"features{i}", budget=f"{times}x", moments=moments)
        yield bench.row("budget, error on features", f"{times}x", place / f"features{i}")
    for i, times in enumerate(BY_BASE):
        compress_bank(whole, place / f"base{i}", budget=f"{times}x", origin="base", base=base)
        yield bench.row("budget, base by reference", f"{times}x", place / f"base{i}")
    for i, ratio in enumerate((*RATIOS, None)):
        try:
            vectors = build_bank(bench.experts, method=TSVCompress(rank_ratio=ratio))
        except ValueError as error:
            print(f"TSV-Compress at {ratio}: {error}")
            continue
        vectors.to(torch.float16).save(place / f"tsv{i}")
        yield bench.row("TSV-Compress", "1/T" if ratio is None else f"{ratio:g}", place / f"tsv{i}")
    for i, ratio in enumerate(RATIOS):
        whole.truncate(ratio).to(torch.float16).save(place / f"cut{i}")
        yield bench.row("truncation", f"{ratio:g}", place / f"cut{i}")


def draw(suite: str, found: list[dict[str, object]], experts: float) -> None:
    """The curves, as docs/results/bank-size-SUITE.svg."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for kind, marker in zip(dict.fromkeys(str(row["kind"]) for row in found), "os*D^", strict=False):
        points = sorted((row["times"], 100 * row["share"]) for row in found if row["kind"] == kind)  # type: ignore[operator, type-var]
        axes.plot(*zip(*points, strict=True), marker=marker, label=kind)
    axes.axhline(99, color="grey", linewidth=0.8, linestyle="--")
    axes.axvline(1.5, color="grey", linewidth=0.8, linestyle="--")
    axes.set(
        xlabel="bytes of the bank / bytes of one model",
        ylabel="% of the experts' accuracy",
        xlim=(0, 3.2),
        ylim=(80, 101),
    )
    axes.set_title(f"{suite}: task known; the experts have {100 * experts:.1f} %")
    axes.legend()
    plt.rcParams["svg.hashsalt"] = "lit_merge"
    figure.savefig(RESULTS / f"bank-size-{suite.replace(':', '-')}.svg", metadata={"Date": None})


def table() -> Iterator[str]:
    """Markdown: of every point the share of the experts' accuracy, in %, mean and deviation over seeds."""
    kinds = over_seeds(RESULTS, "bank-size")
    points = list(dict.fromkeys((one["kind"], one["setting"]) for one in kinds["zoo-8"][0]["rows"]))
    yield "| | setting | " + " | ".join(f"{kind} ({len(seeds)})" for kind, seeds in kinds.items()) + " |"
    yield "|---" * (2 + len(kinds)) + "|"
    for point in points:
        cells = []
        for seeds in kinds.values():
            rows = [one for found in seeds for one in found["rows"] if (one["kind"], one["setting"]) == point]
            shares = [100 * one["share"] for one in rows]
            cells.append(f"{spread(shares)}, {mean(one['times'] for one in rows):.2f}x" if shares else "–")
        yield f"| {point[0]} | {point[1]} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="zoo:8")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.print:
        print("\n".join(table()))
        return
    bench = Bench(options.suite)
    experts = mean(bench.own.values())
    print(f"{len(bench.own)} experts: {100 * experts:.1f} %, together {len(bench.own)} times one model\n")
    print("| | setting | bytes | times one model | accuracy | % of the experts' |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        found = list(rows(bench, Path(place), str(check_built(options.suite) / "base.safetensors")))
    name = f"bank-size-{options.suite.replace(':', '-')}"
    about = {"suite": options.suite, "torch": torch.__version__, "experts": bench.own, "rows": found}
    (RESULTS / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    draw(options.suite, found, experts)


if __name__ == "__main__":
    main()
