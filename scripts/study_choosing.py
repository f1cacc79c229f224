"""Where does a scale that was chosen without labels go wrong? Few images, streams of one class, corrupted images, weak
experts, few tasks: how much test accuracy is lost against the scale that labelled validation images choose, when the
scale is taken where entropy is least, and where agreement with the experts is highest. Scales come from one grid for
all. A line is the mean over task arithmetic, TSV-M, Iso-C and CART at rank ratio .16, with the worst of them.

    python scripts/study_choosing.py                  # zoo:8
    python scripts/study_choosing.py --zoos zoo:8 zoo:8-seed1 zoo:8-seed2
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import mean

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from lit_merge import CART, TSVM, Experts, IsoC, MergeMethod, OpenClipImageEncoder, Suite, TaskArithmetic, build_bank
from lit_merge.checkpoints import write_text
from lit_merge.checkpoints.locations import resolve
from lit_merge.objectives import entropy

MIDDLE = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
METHODS: dict[str, tuple[MergeMethod, Sequence[float]]] = {
    "TaskArithmetic": (TaskArithmetic(), (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)),
    "TSVM": (TSVM(), MIDDLE),
    "IsoC": (IsoC(), MIDDLE),
    "CART": (CART(0.16), (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 13.0)),
}
# Of every task, for validation and for test each.
IMAGES = 240
Change = Callable[[Tensor], Tensor]
PerTask = dict[str, Tensor]


def unchanged(images: Tensor) -> Tensor:
    return images


def noise(images: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (images + 50 * torch.randn(images.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def blur(images: Tensor) -> Tensor:
    return F.avg_pool2d(images.float()[:, None], 5, 1, 2)[:, 0].to(torch.uint8)


def contrast(images: Tensor) -> Tensor:
    middle = images.float().mean((-1, -2), keepdim=True)
    return (middle + 0.25 * (images - middle)).to(torch.uint8)


class Setting:
    """Some tasks of a suite, whose experts may be weakened, and what every merge says on their images.

    Args:
        zoo: the suite.
        tasks: of it.
        strength: experts are base + strength · task vector.
    """

    def __init__(self, zoo: str, tasks: Sequence[str], strength: float = 1.0) -> None:
        folder = resolve(zoo)
        self.tasks = tuple(tasks)
        files = Experts({t: folder / "experts" / f"{t}.safetensors" for t in tasks}, folder / "base.safetensors")
        assert files.base is not None
        self.base = {name: files.base.read(name).float() for name in files.shapes}
        self.experts = {
            task: {name: b.lerp(file.read(name).float(), strength) for name, b in self.base.items()}
            for task, file in files.checkpoints.items()
        }
        self.network = OpenClipImageEncoder(str(folder / "network.json"), str(folder / "heads.safetensors"))
        data = Suite(str(folder), tasks=list(tasks))
        self.images: dict[tuple[str, str], Tensor] = {}
        self.labels: dict[tuple[str, str], Tensor] = {}
        for split in ("validation", "test"):
            for task, (source, labels) in data.labelled(split).items():
                assert labels is not None
                chosen = range(min(IMAGES, len(source)))
                self.images[split, task], self.labels[split, task] = source.read(chosen), labels[: len(chosen)].long()

    @torch.no_grad()
    def logits(self, weights: Callable[[str], Mapping[str, Tensor]], split: str, change: Change = unchanged) -> PerTask:
        found = {}
        for task in self.tasks:
            parts = change(self.images[split, task]).split(256)
            found[task] = torch.cat([self.network(weights(task), {task: part})[task] for part in parts])
        return found

    def curves(self, changes: Mapping[str, Change]) -> dict[str, dict[float, dict[str, PerTask]]]:
        """method → scale → `test`, `validation` and every change's name → logits per task."""
        found: dict[str, dict[float, dict[str, PerTask]]] = {}
        for name, (method, scales) in METHODS.items():
            bank = build_bank(self.experts, self.base, method=method)
            found[name] = {}
            for scale in scales:
                weights = bank.merge(scale)
                seen = {split: self.logits(lambda _: weights, split) for split in ("test", "validation")}  # noqa: B023
                seen |= {label: self.logits(lambda _: weights, "validation", c) for label, c in changes.items()}  # noqa: B023
                found[name][scale] = seen
        return found

    def accuracy(self, logits: PerTask, split: str) -> float:
        return mean((logits[t].argmax(-1) == self.labels[split, t]).double().mean().item() for t in self.tasks)

    def lost(
        self,
        curves: Mapping[str, Mapping[float, Mapping[str, PerTask]]],
        of: str,
        chosen: Mapping[str, Tensor],
        pseudo: PerTask,
    ) -> dict[str, dict[str, float]]:
        """Rule → method → points of test accuracy below the choice by all validation labels.

        Args:
            curves: of every method.
            of: which logits the rules look at.
            chosen: task → indices of the validation images that they see.
            pseudo: what every task's expert predicts there.
        """
        found: dict[str, dict[str, float]] = {"entropy": {}, "agreement": {}}
        for name, scales in curves.items():
            test = {scale: 100 * self.accuracy(seen["test"], "test") for scale, seen in scales.items()}
            best = test[max(scales, key=lambda s: self.accuracy(scales[s]["validation"], "validation"))]
            mean_entropy = {
                scale: mean(entropy(seen[of][t][chosen[t]]).mean().item() for t in self.tasks)
                for scale, seen in scales.items()
            }
            agreement = {
                scale: mean((seen[of][t].argmax(-1) == pseudo[t])[chosen[t]].double().mean().item() for t in self.tasks)
                for scale, seen in scales.items()
            }
            found["entropy"][name] = best - test[min(scales, key=mean_entropy.__getitem__)]
            found["agreement"][name] = best - test[max(scales, key=lambda s: (agreement[s], -mean_entropy[s]))]
        return found


def some(sizes: Mapping[str, int], images: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {task: torch.randperm(size, generator=generator)[:images] for task, size in sizes.items()}


def study(zoo: str) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Every condition, and what each rule loses under it."""
    tasks = tuple(path.stem for path in sorted((resolve(zoo) / "experts").glob("*.safetensors")))
    changes = {"noise": noise, "blur": blur, "low contrast": contrast}
    setting = Setting(zoo, tasks)
    curves = setting.curves(changes)
    sizes = {task: len(setting.images["validation", task]) for task in tasks}
    every = {task: torch.arange(size) for task, size in sizes.items()}
    experts = lambda task: setting.experts[task]  # noqa: E731
    logits = setting.logits(experts, "validation")
    pseudo = {task: value.argmax(-1) for task, value in logits.items()}
    yield f"all {min(sizes.values())} validation images a task", setting.lost(curves, "validation", every, pseudo)
    for images in (1, 2, 4, 8, 16, 32, 64):
        draws = [setting.lost(curves, "validation", some(sizes, images, seed), pseudo) for seed in range(5)]
        yield f"{images} images a task, mean of 5 draws", average(draws)
    for count in (1, 2, 3):
        draws = []
        for seed in range(5):
            only = {}
            for task in tasks:
                labels = setting.labels["validation", task]
                kept = torch.randperm(int(labels.max()) + 1, generator=torch.Generator().manual_seed(seed))[:count]
                only[task] = torch.isin(labels, kept).nonzero().flatten()
            draws.append(setting.lost(curves, "validation", only, pseudo))
        yield f"images of {count} class{'es' * (count > 1)} only, mean of 5 draws", average(draws)
    for label, change in changes.items():
        seen = {task: value.argmax(-1) for task, value in setting.logits(experts, "validation", change).items()}
        yield f"corrupted: {label}", setting.lost(curves, label, every, seen)
    for strength in (0.5, 0.25):
        weak = Setting(zoo, tasks, strength)
        said = weak.logits(lambda task: weak.experts[task], "validation")  # noqa: B023
        own = {task: value.argmax(-1) for task, value in said.items()}
        yield f"weak experts: base + {strength} · task vector", weak.lost(weak.curves({}), "validation", every, own)
    for count in (2, 3, 4):
        draws = []
        for start in (0, 4):
            few = Setting(zoo, [tasks[(start + i) % len(tasks)] for i in range(count)])
            predicted = {t: pseudo[t] for t in few.tasks}
            draws.append(few.lost(without_cart_of_two(few.curves({}), count), "validation", every, predicted))
        yield f"{count} tasks, mean of 2 choices", average(draws)


def without_cart_of_two(curves: dict, count: int) -> dict:
    """CART of two experts is their average at every scale: there is nothing to choose."""
    return {name: value for name, value in curves.items() if count > 2 or name != "CART"}


def average(draws: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {rule: {m: mean(one[rule][m] for one in draws) for m in draws[0][rule]} for rule in draws[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", nargs="+", default=["zoo:8"])
    parser.add_argument("--output", help="write the figures as JSON here too")
    options = parser.parse_args()
    console, found = Console(stderr=True), {}
    for zoo in options.zoos:
        for condition, lost in study(zoo):
            console.print(f"{zoo}: {condition}", highlight=False)
            found.setdefault(condition, []).append(lost)
    print("| what the rules see | entropy: mean (worst) | agreement: mean (worst) |\n|---|---|---|")
    for condition, draws in found.items():
        lost = average(draws)
        cells = [
            f"{-mean(one.values()):+.1f} ({-max(one.values()):+.1f}, {max(one, key=one.__getitem__)})"
            for one in lost.values()
        ]
        print(f"| {condition} | {' | '.join(cells)} |")
    if options.output:
        write_text(options.output, json.dumps(found, indent=1) + "\n", overwrite=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
