"""Every method, static and adapted, on the built-in suites over three seeds of the experts.

Every tuned value (scale, CART's rank) is chosen on labelled validation images; the test images are used once per row
and choice, after everything is chosen. Next to the choice by labels stand those without: by entropy, by agreement with
the experts, and self-consistent. Adapted rows are chosen by nothing: they adapt on unlabelled images that are neither
validation nor test images. The suites of texts stand next to those of images; one takes ten minutes on an H100, and
hours on a CPU.

Goes on where it was cut off: every row is kept in the output folder as soon as it is measured.

    python scripts/benchmark_methods.py                        # everything that is built, and what is missing
    python scripts/benchmark_methods.py --suites zoo:8         # one suite
    python scripts/benchmark_methods.py --print                # the tables of what is measured already
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from rich.console import Console
from suites import check_built, open_suite

from lit_merge import (
    AWD,
    CART,
    ESM,
    TIES,
    TSVM,
    AdaRank,
    ConsensusTA,
    Correction,
    ImageAugmentation,
    IsoC,
    IsoCTS,
    MergeError,
    MergeMethod,
    RegMean,
    Stage,
    TaskArithmetic,
    WeightAveraging,
    WordDropout,
    adapt,
    build_bank,
)
from lit_merge.adaptation.stages import TAUGHT_STAGES
from lit_merge.checkpoints import write_text
from lit_merge.choose.activations import collect_moments
from lit_merge.choose.sample import Probe
from lit_merge.choose.sweep import Grid, Point, choose, walk
from lit_merge.console import plain_warnings
from lit_merge.experts.decompositions import Decompositions
from lit_merge.experts.matrices import Matrices
from lit_merge.merge.scaling import at_scaling
from lit_merge.methods import Transform

SUITES = {
    "8 tasks": ("zoo:8", "zoo:8-seed1", "zoo:8-seed2"),
    "14 tasks": ("zoo:14", "zoo:14-seed1", "zoo:14-seed2"),
    "20 tasks": ("zoo:20", "zoo:20-seed1", "zoo:20-seed2"),
    "8 text tasks": ("text:0", "text:1", "text:2"),
}

# Rules of choice, that by labels first.
SELECTS = ("accuracy", "agreement", "entropy", "self_consistent")


@dataclass(frozen=True)
class Static:
    """A method whose scale (and rank) is chosen on a grid."""

    method: MergeMethod
    scalings: tuple[float, ...] | None = None
    transform: Transform | None = None


@dataclass(frozen=True)
class Adapted:
    """A method that is adapted from where it starts.

    Attributes:
        stages: None for those of `fit` where experts teach.
        corrected: with a shared correction of the origin, and inputs that are changed a little each time.
    """

    method: MergeMethod
    stages: tuple[Stage, ...] | None
    transform: Transform | None = None
    bounds: tuple[float, float] | None = None
    ranks: AdaRank | None = None
    corrected: bool = False


@dataclass(frozen=True)
class Reach:
    """How far a kind of suite is searched.

    Attributes:
        ratios, small, middle, large: the grids; CART's scale is the large one.
        task, layers, two_stages: of adapted rows.
    """

    ratios: tuple[float, ...] = (0.04, 0.08, 0.16, 0.32)
    small: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
    middle: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
    large: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0)
    task: tuple[Stage, ...] = (Stage("task", 500, 1e-3),)
    layers: tuple[Stage, ...] = (Stage("layer", 500, 1e-3),)
    two_stages: tuple[Stage, ...] = (Stage("tied", 100, 0.05), Stage("layer", 100, 1e-3))


IMAGES = Reach()
# A text costs the sentence encoder a hundred times what an image costs the suites' towers: fewer and longer steps.
TEXTS = Reach(
    large=(0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0),
    task=(Stage("task", 100, 5e-3),),
    layers=(Stage("layer", 100, 5e-3),),
)


def reach(suite: str) -> Reach:
    return TEXTS if suite.startswith("text:") else IMAGES


def rows(moments: Any, reach: Reach = IMAGES, matrices: Matrices = "all") -> dict[str, Static | Adapted]:
    """Every row of the table, by its label; `matrices` are those of methods that give every task directions."""
    esm, official = (ESM(preset=preset, moments=moments, matrices=matrices) for preset in ("paper", "official"))
    tsvm = TSVM(matrices=matrices)
    return {
        "weight averaging": Static(WeightAveraging()),
        "task arithmetic": Static(TaskArithmetic(), reach.small),
        "TIES": Static(TIES(), reach.middle),
        "Consensus TA": Static(ConsensusTA(), reach.small),
        "RegMean": Static(RegMean(moments=moments), reach.middle),
        "TSV-M": Static(tsvm, reach.middle),
        "Iso-C": Static(IsoC(), reach.middle),
        "Iso-CTS": Static(IsoCTS(), reach.middle),
        "ESM (paper)": Static(esm, reach.small),
        "ESM (official)": Static(official, reach.middle),
        "CART": Static(CART(), reach.large),
        "AWD + task arithmetic": Static(TaskArithmetic(), reach.small, AWD()),
        "AWD + TIES": Static(TIES(), reach.middle, AWD()),
        "AWD + ESM (paper)": Static(esm, reach.small, AWD()),
        "AdaMerging, task-wise": Adapted(TaskArithmetic(), reach.task, bounds=(0.0, 1.0)),
        "AdaMerging, layer-wise": Adapted(TaskArithmetic(), reach.layers, bounds=(0.0, 1.0)),
        "AdaMerging++, layer-wise": Adapted(TIES(merge="sum", scaling=0.3), reach.layers, bounds=(0.0, 1.0)),
        "AWD + AdaMerging": Adapted(TaskArithmetic(), reach.layers, AWD(), (0.0, 1.0)),
        "TSV-M, adapted": Adapted(tsvm, reach.two_stages),
        "Iso-C, adapted": Adapted(IsoC(), reach.two_stages),
        # Its default scale, 1, is five times the best one, too far off to start from.
        "ESM (paper), adapted": Adapted(replace(esm, scaling="self_consistent"), reach.two_stages),
        "ESM (official), adapted": Adapted(official, reach.two_stages),
        "CART at λ = 1, adapted": Adapted(CART(0.16, 1.0), reach.two_stages),
        "CART at λ = 1 + AdaRank": Adapted(CART(1.0, 1.0), reach.two_stages, ranks=AdaRank(0.16)),
        "CART at λ = 1, by the experts": Adapted(CART(0.16, 1.0), None),
        "TSV-M, by the experts": Adapted(tsvm, None),
        "Iso-C, by the experts": Adapted(IsoC(), None),
        "ESM (official), by the experts": Adapted(official, None),
        "CART at λ = 1, by the experts, corrected": Adapted(CART(0.16, 1.0), None, corrected=True),
        "ESM (official), by the experts, corrected": Adapted(official, None, corrected=True),
        "task arithmetic + AdaRank": Adapted(TaskArithmetic(rank_ratio=1.0), reach.layers, ranks=AdaRank(1.0)),
    }


# CLIP ViT-B/32, 8 / 14 / 20 tasks; the two protocols are other experts and must not be mixed (shared/METHODS.md).
LITERATURE = {
    "pretrained": ("48.0 / 57.1 / 56.0", ""),
    "weight averaging": ("65.9 / 64.3 / 61.0", ""),
    "task arithmetic": ("69.1 / 65.4 / 60.5", ""),
    "TIES": ("72.4 / 65.2 / 62.9", ""),
    "TSV-M": ("", "85.9 / 80.1 / 77.1"),
    "Iso-C": ("", "86.3 / 80.3 / 75.5"),
    "Iso-CTS": ("", "86.2 / 81.7 / 78.1"),
    "ESM (official)": ("", "88.6 / 83.9 / 82.3"),
    "CART": ("84.7 / 79.5 / 76.3", ""),
    "AWD + task arithmetic": ("75.2 / – / –", ""),
    "AdaMerging, layer-wise": ("80.1 / 76.7 / 69.2", ""),
    "CART at λ = 1, adapted": ("85.8 / 82.3 / 82.7", ""),
    "CART at λ = 1 + AdaRank": ("89.2 / – / –", ""),
    "experts": ("90.5 / – / –", "92.8 / 90.9 / 91.4"),
}


class Bench:
    """One suite: experts, probes, and the decompositions that its rows share."""

    def __init__(self, suite: str, inputs: int) -> None:
        self.suite, self.device, self.reach = suite, Fabric(devices=1).device, reach(suite)
        opened = open_suite(suite)
        self.experts, self.network, self.data = opened.experts, opened.network, opened.data
        self.network.to(self.device)
        self.unlabelled = Probe.draw(self.network, self.data, inputs)
        self.unlabelled.ask_experts(self.expert)
        self.validation, self.test = (
            Probe.labelled(self.network, self.data, split) for split in ("validation", "test")
        )
        self.moments = collect_moments(self.experts, self.network, self.data.unlabelled())
        self.kept: dict[str, Decompositions] = {}
        shapes = {name: shape for name, shape in self.experts.shapes.items() if len(shape) == 2}
        # 20 tasks cannot share the 17 directions of this suite's positional embedding.
        enough = [name for name, shape in shapes.items() if min(shape) >= len(self.experts.tasks)]
        self.matrices: Matrices = "all" if len(enough) == len(shapes) else enough

    def expert(self, task: str) -> dict[str, torch.Tensor]:
        checkpoint = self.experts.checkpoints[task]
        return {name: checkpoint.read(name).float() for name in self.experts.shapes}

    def accuracy(self, weights: Mapping[str, torch.Tensor]) -> float:
        found = self.test.read(weights).mean_accuracy
        assert found is not None
        return found

    def references(self) -> dict[str, dict[str, Any]]:
        """Pretrained and experts."""
        base = self.experts.base
        assert base is not None
        experts = []
        for task in self.experts.tasks:
            probe = Probe(self.network, {task: self.test.inputs[task]}, {task: self.test.labels[task]})
            experts.append(probe.read(self.expert(task)).accuracy[task])
        pretrained = self.accuracy({name: base.read(name).float() for name in base.shapes})
        return {"pretrained": {"test": pretrained}, "experts": {"test": mean(experts)}}

    def static(self, row: Static) -> dict[str, Any]:
        """Test accuracy of the choice by labels and of every choice without."""
        kept = self.kept.setdefault(repr(row.transform), Decompositions())
        grid = Grid((row.method,), self.reach.ratios, row.scalings)
        points = list(walk(grid, self.experts, self.unlabelled, self.validation, row.transform, kept))
        found: dict[str, Any] = {}
        tested: dict[Any, float] = {}
        for select in SELECTS:
            try:
                point = choose(points, select)
            except MergeError:
                continue
            if point.key not in tested:
                tested[point.key] = self.accuracy(self.merged(row, point, kept))
            said = {"validation": point.accuracy, "rank_ratio": point.rank_ratio, "scaling": point.scaling}
            found[select] = said | {"test": tested[point.key]}
        return {"test": found["accuracy"]["test"], "choices": found}

    def merged(self, row: Static, point: Point, kept: Decompositions) -> dict[str, torch.Tensor]:
        method = row.method if point.rank_ratio is None else replace(row.method, rank_ratio=point.rank_ratio)  # type: ignore[call-arg]
        bank = build_bank(self.experts, method=method, transform=row.transform, decompositions=kept)
        return (bank if point.scaling is None else at_scaling(bank, method, point.scaling)).merge(dtype=torch.float32)

    def adapted(self, row: Adapted) -> dict[str, Any]:
        pl.seed_everything(0, verbose=False)
        kept = self.kept.setdefault(repr(row.transform), Decompositions())
        bank = build_bank(self.experts, method=row.method, transform=row.transform, decompositions=kept)
        options: dict[str, Any] = {"stages": row.stages, "bounds": row.bounds, "ranks": row.ranks, "guard": False}
        options |= {"experts": self.experts if row.stages is None else None}
        if row.corrected:
            options["correction"] = Correction()
            self.data.augment = WordDropout() if self.suite.startswith("text:") else ImageAugmentation()
        reached = adapt(bank, self.network, self.data, **options, progress=False)
        self.data.augment = None
        self.network.to(self.device)  # the trainer leaves it on the CPU
        test = self.accuracy(reached.merge(dtype=torch.float32))
        steps = sum(stage.steps for stage in row.stages or TAUGHT_STAGES)
        return {"test": test, "coefficient": reached.coefficients.mean().item(), "steps": steps}


def measure(suite: str, output: Path, inputs: int, said: Callable[[str], None]) -> None:
    """Measures the rows of one suite that its file does not hold yet."""
    path = output / f"{suite.replace(':', '-')}.json"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    bench = None
    for name in ["pretrained", *rows(None), "experts"]:
        if name in known:
            continue
        bench = bench or Bench(suite, inputs)
        start = time.perf_counter()
        if name in ("pretrained", "experts"):
            known |= bench.references()
        else:
            row = rows(bench.moments, bench.reach, bench.matrices)[name]
            try:
                known[name] = bench.static(row) if isinstance(row, Static) else bench.adapted(row)
            except MergeError as error:
                said(f"{suite}: {name}: {error}")
                continue
            known[name]["seconds"] = time.perf_counter() - start
        write_text(path, json.dumps(known, indent=1) + "\n", overwrite=True)
        said(f"{suite}: {name}: {100 * known[name]['test']:.1f}")


def load(output: Path) -> dict[str, list[dict[str, Any]]]:
    """Column of the table → the files of its seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for column, suites in SUITES.items():
        for suite in suites:
            path = output / f"{suite.replace(':', '-')}.json"
            if path.exists():
                found.setdefault(column, []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def cells(values: list[float], seeds: int) -> str:
    """Mean and deviation, and a word where not all seeds are measured yet."""
    if not values:
        return "–"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}" + (f" ({len(values)} of {seeds})" if len(values) < seeds else "")


def accuracy_table(results: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Markdown: a line per method, a column per suite, the literature's figures next to them."""
    heads = [f"{column} ({len(files)} seed{'s' * (len(files) > 1)})" for column, files in results.items()]
    yield f"| | {' | '.join(heads)} | CLIP B/32, P-TA: 8 / 14 / 20 | P-TALL |"
    yield f"|---|{'---|' * (len(heads) + 2)}"
    for name in ["pretrained", *rows(None), "experts"]:
        measured = [
            cells([one[name]["test"] for one in files if name in one], len(files)) for files in results.values()
        ]
        yield f"| {name} | {' | '.join(measured)} | {' | '.join(LITERATURE.get(name, ('', '')))} |"


def choice_table(results: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Markdown: how far every choice without labels lies from the choice with labels, in points of test accuracy."""
    others = SELECTS[1:]
    yield "| suite | method | by labels | " + " | ".join(one.replace("_", "-") for one in others) + " |"
    yield f"|---|---|---|{'---|' * len(others)}"
    for column, files in results.items():
        for name, row in rows(None).items():
            chosen = [one[name]["choices"] for one in files if name in one and "choices" in one[name]]
            if not isinstance(row, Static) or not chosen or chosen[0]["accuracy"]["scaling"] is None:
                continue
            shown = [cells([one["accuracy"]["test"] for one in chosen], len(chosen))]
            for select in others:
                apart = [one[select]["test"] - one["accuracy"]["test"] for one in chosen if select in one]
                shown.append(" ".join(f"{100 * value:+.1f}" for value in apart) or "–")
            yield f"| {column} | {name} | {' | '.join(shown)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=[suite for suites in SUITES.values() for suite in suites])
    parser.add_argument("--output", default="runs/benchmark", help="folder of what is measured")
    parser.add_argument(
        "--inputs", type=int, default=64, help="unlabelled inputs of every task for choices without labels"
    )
    parser.add_argument("--print", action="store_true", help="measure nothing")
    options = parser.parse_args()
    plain_warnings()
    output, console = Path(options.output), Console(stderr=True)
    missing = []
    for suite in [] if options.print else options.suites:
        try:
            check_built(suite)
        except MergeError as error:
            missing.append(str(error))
            continue
        measure(suite, output, options.inputs, console.print)
    results = load(output)
    console.print(
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads", highlight=False
    )
    print("\n".join(accuracy_table(results)))
    print()
    print("\n".join(choice_table(results)))
    for said in missing:
        console.print(f"Missing: {said}", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
