"""Is the built-in suite an honest miniature of the literature? Merges it with every method over three seeds of the
experts, prints the table of test accuracies, and says which of the suite's targets hold.

Scales (and CART's rank) are chosen on validation images, for every method and seed; the test images are used once per
row. The adapted merge is chosen by nothing: the quickstart's settings, on unlabelled adaptation images.

    python scripts/check_zoo.py
    python scripts/check_zoo.py --zoos zoo:14 zoo:20
"""

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import lightning.pytorch as pl
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from lit_merge import CART, TSVM, Experts, IsoC, MergedModel, Stage, Suite, TaskArithmetic, TaskBank, WeightAveraging
from lit_merge.adaptation.scoring import Evaluator
from lit_merge.checkpoints import write_text
from lit_merge.checkpoints.locations import resolve
from lit_merge.console import plain_warnings
from lit_merge.merge.build import build_bank
from lit_merge.networks import OpenClipImageEncoder
from lit_merge.report.scores import mean_accuracy

SCALES = {
    "task arithmetic": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8),
    "TSV-M": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5),
    "Iso-C": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5),
    "CART": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0),
}
RATIOS = (0.08, 0.16, 0.32)
STAGES = (Stage("tied", 100, 0.05), Stage("layer", 100, 0.001))
Weights = Mapping[str, Tensor]


class Bench:
    """One suite, and how to score any weights on it."""

    def __init__(self, zoo: str) -> None:
        folder = resolve(zoo)
        tasks = [task["name"] for task in json.loads((folder / "zoo.json").read_text(encoding="utf-8"))["tasks"]]
        sources = {task: folder / "experts" / f"{task}.safetensors" for task in tasks}
        self.experts = Experts(sources, folder / "base.safetensors")
        self.network = OpenClipImageEncoder(str(folder / "network.json"), str(folder / "heads.safetensors"))
        self.data = Suite(str(folder), tasks=tasks)

    def trainer(self, steps: int = -1) -> pl.Trainer:
        return pl.Trainer(
            max_steps=steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def accuracy(self, weights: Callable[[str], Weights], split: str) -> float:
        """Mean over tasks of the accuracy on validation or test images."""
        evaluator = Evaluator(self.network, self.experts.tasks, weights)
        loader = self.data.test_dataloader() if split == "test" else self.data.val_dataloader()
        self.trainer().test(evaluator, dataloaders=loader, verbose=False)
        return mean_accuracy(evaluator.scores)

    def tuned(self, banks: Mapping[str, TaskBank], scales: tuple[float, ...]) -> dict[str, object]:
        """The bank and scale that are best on validation images, and their one test accuracy."""
        grid = {
            (name, scale): self.merged(bank, scale, "validation") for name, bank in banks.items() for scale in scales
        }
        name, scale = max(grid, key=lambda place: grid[place])
        return {"test": self.merged(banks[name], scale, "test"), "chosen": f"{name} λ {scale}".strip()}

    def merged(self, bank: TaskBank, scale: float | None, split: str) -> float:
        weights = bank.merge(scale, torch.float32)
        return self.accuracy(lambda task: weights, split)

    def adapted(self, bank: TaskBank) -> TaskBank:
        pl.seed_everything(0, verbose=False)
        model = MergedModel(bank, self.network, stages=STAGES)
        self.trainer(model.total_steps).fit(model, datamodule=self.data)
        return model.to_bank()


def check(zoo: str) -> dict[str, dict[str, object]]:
    """Row → test accuracy, and what was chosen."""
    bench, rows = Bench(zoo), {}
    experts, base = bench.experts, bench.experts.base
    pretrained = {name: base.read(name).float() for name in base.shapes}
    rows["pretrained"] = {"test": bench.accuracy(lambda task: pretrained, "test")}
    averaging = build_bank(experts, method=WeightAveraging(), dtype=torch.float32)
    rows["weight averaging"] = {"test": bench.merged(averaging, None, "test")}
    for name, method in {"task arithmetic": TaskArithmetic(), "TSV-M": TSVM(), "Iso-C": IsoC()}.items():
        rows[name] = bench.tuned({"": build_bank(experts, method=method)}, SCALES[name])
    cart = build_bank(experts, method=CART(rank_ratio=max(RATIOS)))
    rows["CART"] = bench.tuned({f"rank {ratio}": cart.truncate(ratio) for ratio in RATIOS}, SCALES["CART"])
    start = build_bank(experts, method=CART(rank_ratio=0.16, scaling=1.0))
    rows["CART at λ = 1"] = {"test": bench.merged(start, 1.0, "test")}
    adapted = bench.adapted(start)
    rows["  adapted, no labels"] = {
        "test": bench.merged(adapted, None, "test"),
        "chosen": f"mean λ {adapted.coefficients.mean().item():.2f}",
    }
    checkpoints = experts.checkpoints
    rows["experts"] = {
        "test": bench.accuracy(lambda t: {n: checkpoints[t].read(n).float() for n in experts.shapes}, "test")
    }
    return rows


def targets(means: Mapping[str, float]) -> list[tuple[str, float, bool]]:
    """The suite's targets: text, measured figure in points, whether it holds."""
    points = {name: 100 * value for name, value in means.items()}
    order = ["pretrained", "weight averaging", "task arithmetic", "TSV-M", "Iso-C", "CART", "experts"]
    below = points["experts"] - points["weight averaging"]
    above = points["CART"] - points["task arithmetic"]
    gain = points["  adapted, no labels"] - points["CART at λ = 1"]
    steps = [points[high] - points[low] for low, high in pairwise(order)]
    return [
        ("experts at least 92 %", points["experts"], points["experts"] >= 92),
        ("averaging at least 20 points below the experts", below, below >= 20),
        ("CART at least 8 points above task arithmetic", above, above >= 8),
        ("adaptation gains at least 10 points without labels", gain, gain >= 10),
        (f"order: {' < '.join(order)} (smallest step)", min(steps), min(steps) > 0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", nargs="+", default=["zoo:8", "zoo:8-seed1", "zoo:8-seed2"], help="suites to check")
    parser.add_argument("--output", help="write the figures as JSON here too")
    options = parser.parse_args()
    plain_warnings()
    results = {zoo: check(zoo) for zoo in track(options.zoos, "checking", console=Console(stderr=True))}
    console = Console()
    console.print("Mean test accuracy over tasks, %")
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for zoo in results:
        table.add_column(zoo, justify="right")
    table.add_column("mean", justify="right")
    table.add_column("chosen")
    names = next(iter(results.values()))
    means = {}
    for name in names:
        values = [rows[name]["test"] for rows in results.values()]
        means[name] = mean(values)
        spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
        chosen = "; ".join(dict.fromkeys(str(rows[name].get("chosen", "")) for rows in results.values()))
        table.add_row(name, *(f"{100 * v:.1f}" for v in values), f"{100 * means[name]:.1f}{spread}", chosen)
    console.print(table)
    checked = targets(means)
    for text, figure, holds in checked:
        console.print(f"{'holds ' if holds else 'MISSED'}  {text}: {figure:.1f}")
    if options.output:
        machine = {"machine": platform.machine(), "torch": torch.__version__}
        text = json.dumps(machine | {"zoos": results}, indent=1, ensure_ascii=False)
        write_text(Path(options.output), text + "\n", overwrite=True)
    return 0 if all(holds for *_, holds in checked) else 1


if __name__ == "__main__":
    raise SystemExit(main())
