"""What adaptation does over its steps: which stages, which objective, when to stop, and how a collapse looks.

Every run is watched every few steps: test accuracy, which nothing here is chosen by, next to what can be seen without
labels on a fixed probe of unlabelled inputs: entropy, balance of the predicted classes, agreement with the experts, and
churn (the share of predictions that differ from those at the last look).

Goes on where it was cut off: every run is kept in the output folder as soon as it is done.

    python scripts/study_adaptation.py zoo:8                      # one suite
    python scripts/study_adaptation.py zoo:8 text:0 --only CART   # runs whose name starts so
    python scripts/study_adaptation.py zoo:8 --only "CART / directions at 0.04, experts, 300 steps, "   # other ways
    python scripts/study_adaptation.py --print                    # the tables of what is measured already
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback

sys.path.insert(0, str(Path(__file__).resolve().parent))

from suites import open_suite, spread
from teaching_ways import Averaged, OfChangedImages, OfLayers, OfLayersAlone, OfMixedInputs, from_regmean

from lit_merge import (
    CART,
    ESM,
    TSVM,
    CollapseGuard,
    Correction,
    ImageAugmentation,
    IsoC,
    IsoCTS,
    MergedModel,
    MergeError,
    MergeMethod,
    Stage,
    TaskArithmetic,
    build_bank,
)
from lit_merge.checkpoints import write_text
from lit_merge.choose.activations import collect_moments
from lit_merge.choose.sample import Probe
from lit_merge.console import plain_warnings
from lit_merge.data import TaskData
from lit_merge.data.streams import ImageSource, ImageTensor
from lit_merge.objectives import ConfidentEntropy, Entropy, ExpertAgreement, InformationMaximisation, Objective

# Steps at which a run is looked at, and those with all test images rather than a sample of them.
LOOKS, WHOLE = (0, 20, 40, 60, 80, 100, 150, 200, 300, 400), (0, 100)
IMAGES, SAMPLE = 64, 150
TIED, LAYER = Stage("tied", 100, 0.05), Stage("layer", 300, 1e-3)
TWO = (TIED, LAYER)


@dataclass(frozen=True)
class Run:
    """What is adapted how.

    Attributes:
        one_class: on a stream of one class.
        pool: on so many inputs of every task, rather than on all that there are.
        by_bank: whether the bank's own experts teach (task indexing), rather than the experts' files.
        batch_size: inputs of every task a step, where they are not the suite's 16.
        module: what learns; ways that are not in the package, too.
        regmean: whether the merge is RegMean's at the start.
    """

    method: MergeMethod
    stages: tuple[Stage, ...] = TWO
    objective: Objective | None = None
    sharpness: float = 0.0
    one_class: bool = False
    pool: int | None = None
    by_bank: bool = False
    correction: Correction | None = None
    augment: ImageAugmentation | None = None
    batch_size: int | None = None
    module: type[MergedModel] = MergedModel
    regmean: bool = False


def runs(moments: Any) -> dict[str, Run]:
    """Every run by its name: method / what is special."""
    cart, whole = CART(0.16, 1.0), TaskArithmetic()
    methods = {"CART": cart, "TSV-M": TSVM(), "Iso-C": IsoC(), "ESM": ESM(preset="official", moments=moments)}
    named = {f"{name} / two stages": Run(method) for name, method in (methods | {"task arithmetic": whole}).items()}
    for name, method in (("CART", cart), ("task arithmetic", whole)):
        named[f"{name} / layers only"] = Run(method, (LAYER,))
        for label, objective in OBJECTIVES.items():
            named[f"{name} / {label}"] = Run(method, (TIED, Stage("layer", 200, 1e-3)), objective)
        named[f"{name} / sharpness-aware"] = Run(method, (TIED, Stage("layer", 200, 1e-3)), sharpness=0.05)
    named["CART / gentle layers"] = Run(cart, (TIED, Stage("layer", 200, 2e-4)))
    named["CART / high rate"] = Run(cart, (Stage("layer", 200, 0.1),))
    named["CART / one class"] = Run(cart, (TIED, Stage("layer", 100, 1e-2)), one_class=True)
    methods |= {"Iso-CTS": IsoCTS()} | {f"CART at rank ratio {ratio}": CART(ratio, 1.0) for ratio in (0.08, 0.32, 0.64)}
    named |= {f"CART / directions at 0.04, experts, 300 steps, {label}": run for label, run in others(cart).items()}
    return named | {
        f"{name} / {label}": run for name, method in methods.items() for label, run in taught(method).items()
    }


def taught(method: MergeMethod) -> dict[str, Run]:
    """Coefficients of directions: by entropy, by the experts, and with what else can be learnt or changed."""
    experts, both, images = ExpertAgreement(), Correction(), ImageAugmentation()
    more = ImageAugmentation(degrees=20, scale=0.2, shift=0.15, brightness=0.4)

    def longer(steps: int, rate: float) -> tuple[Stage, ...]:
        """As a fit does by default: the scale by entropy, then directions by the experts."""
        return TIED, Stage("direction", steps, rate, relative=True, decay="cosine", objective=experts)

    stages = {rate: (TIED, Stage("direction", 200, rate, relative=True, decay="cosine")) for rate in RATES}
    found = {f"directions at {rate}, experts": Run(method, stages[rate], experts) for rate in RATES}
    return found | {
        "directions, entropy": Run(method, stages[0.01]),
        "directions, information maximisation": Run(method, stages[0.01], InformationMaximisation()),
        "directions at 0.04, features of the experts": Run(method, stages[0.04], ExpertAgreement(of="features")),
        "directions, experts, correction": Run(method, stages[0.02], experts, correction=both),
        "directions, experts, images": Run(method, stages[0.02], experts, augment=images),
        "directions, experts, correction, images": Run(method, stages[0.02], experts, correction=both, augment=images),
        "directions, experts, correction, images, 400 steps": Run(
            method, longer(400, 0.02), correction=both, augment=images
        ),
        **{
            f"directions, experts, correction of rank 64, images changed more, 32 a step, {steps} steps": Run(
                method, longer(steps, 0.02), correction=Correction(64, 0.002), augment=more, batch_size=32
            )
            for steps in (200, 400)
        },
        "directions at 0.04, experts, 300 steps": Run(method, longer(300, 0.04)),
        "directions at 0.04, experts, images, 400 steps": Run(method, longer(400, 0.04), augment=images),
        "directions at 0.04, experts, images changed more, 32 a step, 400 steps": Run(
            method, longer(400, 0.04), augment=more, batch_size=32
        ),
        "directions at 0.04, by the bank": Run(method, stages[0.04], experts, by_bank=True),
        **{
            f"directions at 0.04, experts, {pool} inputs": Run(method, stages[0.04], experts, pool=pool)
            for pool in (16, 64)
        },
    }


def others(method: MergeMethod) -> dict[str, Run]:
    """Directions as papers would learn them: see teaching_ways.py."""
    directions = Stage("direction", 300, 0.04, relative=True, decay="cosine", objective=ExpertAgreement())
    stages = TIED, directions
    return {
        "and layers": Run(method, stages, module=OfLayers),
        "layers alone": Run(method, stages, module=OfLayersAlone),
        "mixed images": Run(method, stages, module=OfMixedInputs),
        "at a constant rate": Run(method, (TIED, replace(directions, decay="constant"))),
        "at a constant rate, averaged": Run(method, (TIED, replace(directions, decay="constant")), module=Averaged),
        "from RegMean": Run(method, (directions,), regmean=True),
        "consistency without experts": Run(
            method, (TIED, replace(directions, lr=0.01, objective=None)), module=OfChangedImages
        ),
    }


# A row of the tables that is no run.
EXPERTS = "the experts themselves"
# Of the coefficients' mean, a step.
RATES = (0.01, 0.02, 0.04)
OBJECTIVES: dict[str, Objective] = {
    "entropy": Entropy(),
    "entropy per log classes": Entropy(per_log_classes=True),
    "information maximisation": InformationMaximisation(),
    "confident entropy": ConfidentEntropy(),
    "expert agreement": ExpertAgreement(),
}


class Chosen(TaskData):
    """Other inputs to adapt on, of data that are otherwise the same."""

    def __init__(self, data: TaskData, protocol: str, sources: Mapping[str, ImageSource]) -> None:
        super().__init__(data.batch_size, data.eval_batch_size, 0, data.seed)
        self.inner, self.tasks, self.protocol, self.sources = data, data.tasks, protocol, sources  # type: ignore[misc]

    tasks: tuple[str, ...] = ()  # type: ignore[assignment]
    protocol: str = ""  # type: ignore[assignment]

    def unlabelled(self) -> Mapping[str, ImageSource]:
        return self.sources

    def labelled(self, split: str) -> Any:
        return self.inner.labelled(split)


def chosen(data: TaskData, run: Run) -> TaskData:
    """The inputs that a run adapts on: of a task's first class only, as a stream that shows nothing else for a long
    time; or some of every task, drawn by the data's seed."""
    found: dict[str, ImageSource] = {}
    if run.one_class:
        for task, (source, labels) in data.labelled("validation").items():
            assert labels is not None
            found[task] = ImageTensor(source.read((labels == 0).nonzero().flatten().tolist()))
        return Chosen(data, "one class", found)
    if run.pool is not None:
        for task, source in data.unlabelled().items():
            order = torch.randperm(len(source), generator=torch.Generator().manual_seed(data.seed))
            found[task] = ImageTensor(source.read(order[: run.pool].tolist()))
        return Chosen(data, f"{run.pool} inputs of every task", found)
    return data


class Watch(Callback):
    """Looks at the merge every few steps."""

    def __init__(self, probe: Probe, held_out: Probe, test: Probe) -> None:
        self.probe, self.held_out, self.test, self.seen = probe, held_out, test, list[dict[str, Any]]()
        self.sample = Probe(
            test.network,
            {task: x[:SAMPLE] for task, x in test.inputs.items()},
            {task: x[:SAMPLE] for task, x in test.labels.items()},
        )
        self.last: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in LOOKS:
            self.look(trainer.global_step, pl_module, trainer.global_step in WHOLE)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.look(trainer.global_step, pl_module, True)

    @torch.no_grad()
    def look(self, step: int, model: MergedModel, whole: bool) -> None:
        weights = model.merged_weights()
        reading = self.probe.read(weights)
        inputs = {task: x.to(model.device) for task, x in self.probe.inputs.items()}
        now = {task: value.argmax(-1) for task, value in model.network(weights, inputs).items()}
        churn = {task: (now[task] != self.last[task]).float().mean().item() for task in self.last}
        self.last = now
        self.seen.append(
            {"step": step, "coefficient": model.coefficients().mean().item(), "churn": churn}
            | {"sample": self.sample.read(weights).accuracy, "entropy": reading.entropy}
            | ({"test": self.test.read(weights).accuracy} if whole else {})
            | {"balance": reading.balance, "agreement": reading.agreement}
            | {"held_out": self.held_out.read(weights).agreement}
        )


def measure(name: str, output: Path, only: str) -> None:
    """All runs of one suite that its file does not hold yet."""
    path = output / f"{name.replace(':', '-')}.json"
    known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    named = [only] if only in runs(None) else [one for one in runs(None) if one.startswith(only)]
    wanted = [one for one in named if one not in known]
    if not wanted:
        return
    suite = open_suite(name)
    network, data = suite.network, suite.data
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    probe = Probe.draw(network, data, IMAGES)
    probe.ask_experts(lambda task: expert(suite, task))
    # What rates are chosen by: inputs that no fit sees, without their labels.
    held_out = Probe(
        network, {task: x[:SAMPLE] for task, x in Probe.labelled(network, data, "validation").inputs.items()}
    )
    held_out.ask_experts(lambda task: expert(suite, task))
    test = Probe.labelled(network, data, "test")
    if EXPERTS not in known:
        labelled = {task: Probe(network, {task: x}, {task: test.labels[task]}) for task, x in test.inputs.items()}
        own = {task: one.read(expert(suite, task)).accuracy[task] for task, one in labelled.items()}
        write_text(path, json.dumps(known | {EXPERTS: [{"step": 0, "test": own}]}) + "\n", overwrite=True)
    look = any(one.startswith("ESM") or runs(None)[one].regmean for one in wanted)
    moments = collect_moments(suite.experts, network, data.unlabelled()) if look else None
    for one in wanted:
        run = runs(moments)[one]
        pl.seed_everything(0, verbose=False)
        bank = build_bank(suite.experts, method=run.method)
        if run.regmean:
            bank = from_regmean(bank, suite.experts, moments)
        model = run.module(bank, network, run.objective, run.stages, sharpness=run.sharpness, correction=run.correction)
        if not run.by_bank:
            model.expert_weights = lambda task: {n: w.to(network.device) for n, w in expert(suite, task).items()}  # type: ignore[method-assign]
        watch = Watch(probe, held_out, test)
        trainer = pl.Trainer(
            max_steps=model.total_steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[watch],
        )
        usual = data.batch_size
        data.augment, data.batch_size = run.augment, run.batch_size or usual
        trainer.fit(model, datamodule=chosen(data, run))
        data.augment, data.batch_size = None, usual
        known = (json.loads(path.read_text("utf-8")) if path.exists() else {}) | {one: watch.seen}
        write_text(path, json.dumps(known) + "\n", overwrite=True)
        curve = [f"{100 * mean(seen['sample'].values()):.1f}" for seen in watch.seen]
        agreed = mean(watch.seen[-1]["held_out"].values())
        print(f"{name}: {one}: {' '.join(curve)}; agreement on others {100 * agreed:.1f}", flush=True)


def expert(suite: Any, task: str) -> dict[str, torch.Tensor]:
    checkpoint = suite.experts.checkpoints[task]
    return {name: checkpoint.read(name).float() for name in suite.experts.shapes}


def tables(output: Path) -> Iterator[str]:
    """Markdown: test accuracy at the start, after every stage, and at the end, mean and deviation over seeds."""
    files: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(output.glob("*.json")):
        kind = path.stem.partition("-seed")[0]
        kind = "text" if kind.startswith("text") else kind
        files.setdefault(kind, []).append(json.loads(path.read_text("utf-8")))
    yield "| run | " + " | ".join(f"{kind} ({len(seeds)})" for kind, seeds in files.items()) + " |"
    yield "|---|" + "---|" * len(files)
    for name in (EXPERTS, *runs(None)):
        shown = []
        for seeds in files.values():
            curves = [
                [100 * mean(seen["test"].values()) for seen in one[name] if "test" in seen]
                for one in seeds
                if name in one
            ]
            shown.append(" → ".join(spread(values) for values in zip(*curves, strict=True)) or "–")
        if any(one != "–" for one in shown):
            yield f"| {name} | " + " | ".join(shown) + " |"


def signs(output: Path) -> str:
    """What the guard's signs come to in fits that are healthy: its thresholds must lie well apart from these."""
    curves = [
        seen
        for path in output.glob("*.json")
        for name, seen in json.loads(path.read_text("utf-8")).items()
        if not name.endswith(("high rate", "one class", EXPERTS))
    ]
    kept = [
        look["balance"][task] / seen[0]["balance"][task] for seen in curves for look in seen for task in look["balance"]
    ]
    churn = [mean(look["churn"].values()) for seen in curves for look in seen[2:]]
    gained = [back for seen in curves if (back := too_long(seen)) is not None] or [0.0]
    spread = f"{mean(gained):+.1f} points of accuracy ({min(gained):+.1f} to {max(gained):+.1f})"
    return (
        f"{len(curves)} healthy runs: balance at least {min(kept):.2f} of that at the start, churn at most "
        f"{max(churn):.2f}; the guard ends {len(gained)} of them at an earlier look, for {spread}"
    )


def too_long(seen: list[dict[str, Any]]) -> float | None:
    """Points of accuracy that the guard brings where it goes back to the look with the highest agreement."""
    agreement = [mean(look["agreement"].values()) for look in seen]
    best = agreement.index(max(agreement))
    if agreement[-1] >= agreement[best] - CollapseGuard().margin:
        return None
    return 100 * (mean(seen[best]["sample"].values()) - mean(seen[-1]["sample"].values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", help="zoo:8 and its like, text:SEED")
    parser.add_argument("--output", type=Path, default=Path("runs/adaptation"), help="(default: %(default)s)")
    parser.add_argument("--only", default="", help="the run of this name, or all whose name starts so")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    options = parser.parse_args()
    plain_warnings()
    for suite in [] if options.print else options.suites:
        try:
            measure(suite, options.output, options.only)
        except MergeError as error:
            print(f"study_adaptation: {error}", file=sys.stderr)
            return 1
    print("\n".join(tables(options.output)))
    print(signs(options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
