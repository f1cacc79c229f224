"""One suite, its experts, and the folder of all that was read of their merges."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from lightning.fabric import Fabric
from suites import Opened

from lit_merge import MergeMethod, build_bank
from lit_merge.checkpoints import write_text
from lit_merge.choose.sample import Probe, share
from lit_merge.choose.sweep import Grid, Point, walk
from lit_merge.experts.decompositions import Decompositions
from lit_merge.merge.scaling import at_scaling
from text_suite.records import Logits, Record, Recorder, file_name, load, load_records, save_atomically
from text_suite.rules import Study


class Bench:
    """Reads merges of a suite, once each.

    Args:
        suite: what is merged, and its inputs.
        output: folder where readings are kept.
        count: unlabelled inputs of every task, at most.
    """

    def __init__(self, suite: Opened, output: Path, count: int) -> None:
        self.experts, self.network, self.data = suite.experts, suite.network, suite.data
        self.network.to(Fabric(devices=1).device)
        self.output, self.kept = output, Decompositions()
        self.pool = Recorder(self.network, Probe.draw(self.network, self.data, count).inputs)
        self.validation = self.labelled("validation")
        self.tests: dict[str, dict[str, float]] = {}
        self.ask_experts()

    def labelled(self, split: str) -> Recorder:
        found = Probe.labelled(self.network, self.data, split)
        return Recorder(self.network, found.inputs, found.labels)

    def expert(self, task: str) -> dict[str, torch.Tensor]:
        checkpoint = self.experts.checkpoints[task]
        return {name: checkpoint.read(name).float() for name in self.experts.shapes}

    def pretrained(self) -> dict[str, torch.Tensor]:
        base = self.experts.base
        assert base is not None
        return {name: base.read(name).float() for name in base.shapes}

    def ask_experts(self) -> None:
        """Reads what every expert predicts of its own inputs."""
        path = self.output / "experts.safetensors"
        if not path.exists():
            self.output.mkdir(parents=True, exist_ok=True)
            found = {}
            for split, probe in (("pool", self.pool), ("test", self.labelled("test"))):
                for task in self.data.tasks:
                    one = Recorder(self.network, {task: probe.inputs[task]})
                    one.read(self.expert(task))
                    found[f"{split}/{task}"] = one.seen[task]
            save_atomically(found, path)
        self.pool.predictions = {task: value.argmax(-1) for task, value in self.said("pool").items()}

    def said(self, split: str) -> Logits:
        """task → logits of the task's expert."""
        found, _ = load(self.output / "experts.safetensors")
        return {task: found[f"{split}/{task}"] for task in self.data.tasks}

    def read(self, grid: Grid) -> Iterator[Point]:
        """Every point of a grid that the folder does not hold yet."""
        folder = self.output / "points"
        known = {one.point.key: one.point for one in load_records(folder)}
        for point in walk(grid, self.experts, self.pool, self.validation, None, self.kept, known):
            Record(point, self.pool.seen).save(folder)
            yield point

    def merged(self, method: MergeMethod, point: Point) -> dict[str, torch.Tensor]:
        if point.rank_ratio is not None:
            method = replace(method, rank_ratio=point.rank_ratio)  # type: ignore[call-arg]
        bank = build_bank(self.experts, method=method, decompositions=self.kept)
        assert point.scaling is not None
        return at_scaling(bank, method, point.scaling).merge(dtype=torch.float32)

    def test(self, methods: Mapping[str, MergeMethod], points: list[Point]) -> Iterator[str]:
        """Reads the test inputs of points that were chosen, and of the pretrained encoder; names each."""
        path = self.output / "test.json"
        self.tests = json.loads(path.read_text("utf-8")) if path.exists() else {}
        probe = None
        named: dict[str, Point | None] = {"pretrained": None} | {file_name(point): point for point in points}
        for name, point in named.items():
            if name in self.tests:
                continue
            probe = probe or self.labelled("test")
            weights = self.pretrained() if point is None else self.merged(methods[point.method], point)
            self.tests[name] = probe.read(weights).accuracy
            write_text(path, json.dumps(self.tests, indent=1) + "\n", overwrite=True)
            yield name
        labels = {task: target for task, (_, target) in self.data.labelled("test").items() if target is not None}
        self.tests["experts"] = {task: share(value, labels[task]) for task, value in self.said("test").items()}

    def tested(self, name: str) -> float:
        """Mean test accuracy of what was tested under a name."""
        return mean(self.tests[name].values())

    def records(self, method: str) -> list[Record]:
        """What was read of a method."""
        return [one for one in load_records(self.output / "points") if one.point.method == method]

    def study(self, records: Sequence[Record], count: int, draw: int | None = None) -> Study:
        """Merges seen through some inputs of every task, or all where it has fewer.

        Args:
            records: of one method.
            count: of inputs.
            draw: seed of which ones; by default those that `Probe.draw` takes.
        """
        experts = self.said("pool")
        chosen = {}
        for number, (task, value) in enumerate(experts.items()):
            seed = self.data.seed if draw is None else 1000 * (draw + 1) + number
            order = torch.randperm(len(value), generator=torch.Generator().manual_seed(seed))
            chosen[task] = order[:count].sort().values
        return Study(records, experts, chosen)
