"""What is lost where nobody says which task an input is of: the merge, the experts of a bank chosen input by input, and
the same with the task known, on test inputs of all tasks shuffled into one stream.

Prototypes are made of the unlabelled inputs to adapt on; nothing is chosen by labels. With the head known an input is
classified among the classes of its own task, otherwise among those of all tasks. Goes on where it was cut off.

    python scripts/benchmark_routing.py                                 # zoo:8
    python scripts/benchmark_routing.py --suites zoo:14 zoo:20 text:0   # once they are built
    python scripts/benchmark_routing.py --print                         # the tables of what is measured already
    python scripts/benchmark_routing.py --seeds                         # and over the seeds of the experts
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any, cast, get_args

import torch
from suites import open_suite, over_seeds, spread
from torch import Tensor

from lit_merge import CART, Prototypes, TaskBank, build_bank
from lit_merge.adaptation.routing.mean_tokens import mask_of, placed, run_watched
from lit_merge.adaptation.routing.residuals import LayerRoutes, residuals
from lit_merge.adaptation.routing.router import Route, Router
from lit_merge.checkpoints import write_text
from lit_merge.choose.sample import Probe
from lit_merge.console import plain_warnings
from lit_merge.data.class_names import MIXED
from lit_merge.networks import Network, compute_dtype

BATCH = 256
RANK = 0.08
"""Of ESM++'s residuals."""
LAYERS_KNOWN = "layers, task known"
NAMES = ("merge", "task known", *get_args(Route), LAYERS_KNOWN)
Ask = Callable[[Tensor, str, str], tuple[Tensor, Tensor | None]]
"""Inputs, their task as far as it may be known, and their head → logits, and scores of every task."""


class Stream:
    """Test inputs, shuffled over the tasks."""

    def __init__(self, network: Network, probe: Probe) -> None:
        self.network, self.inputs, self.labels = network, probe.inputs, probe.labels
        whole = [(task, i) for task, inputs in self.inputs.items() for i in range(len(inputs))]
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0)).tolist()
        self.whole = [whole[i] for i in order]

    def batches(self, known: bool) -> Iterator[tuple[list[tuple[str, int]], Tensor]]:
        """Whose inputs, and which; of one task each where tasks, or their heads, are known."""
        if known:
            for task, inputs in self.inputs.items():
                for start in range(0, len(inputs), BATCH):
                    chosen = range(start, min(start + BATCH, len(inputs)))
                    yield [(task, i) for i in chosen], inputs[list(chosen)]
            return
        for start in range(0, len(self.whole), BATCH):
            chosen_ = self.whole[start : start + BATCH]
            yield chosen_, self.network.join([self.inputs[task][i : i + 1] for task, i in chosen_])

    @torch.no_grad()
    def measure(self, tasks: tuple[str, ...], ask: Ask, mixed: bool) -> dict[str, float]:
        """Accuracy, share of inputs that were taken for their own task, and CPU seconds for a thousand inputs."""
        hits: dict[str, list[float]] = {task: [] for task in tasks}
        found: dict[str, list[float]] = {task: [] for task in tasks}
        began = time.process_time()
        for whose, inputs in self.batches(not mixed):
            logits, scores = ask(inputs, whose[0][0], MIXED if mixed else whose[0][0])
            classes = logits.argmax(1).tolist()
            for (task, i), place in zip(whose, classes, strict=True):
                first = self.network.heads.first_row(MIXED, task) if mixed else 0
                hits[task].append(place == first + int(self.labels[task][i]))
            if scores is not None:
                for (task, _), place in zip(whose, scores.argmax(1).tolist(), strict=True):
                    found[task].append(tasks[place] == task)
        seconds = time.process_time() - began
        result = {"accuracy": 100 * mean(mean(one) for one in hits.values())}
        if all(found.values()):
            result["routing"] = 100 * mean(mean(one) for one in found.values())
        return result | {"seconds": 1000 * seconds / len(self.whole)}


class Rows:
    """What is measured of a bank, row by row."""

    def __init__(self, bank: TaskBank, network: Network, data: Any) -> None:
        self.bank, self.network, self.data = bank, network, data
        self.dtype = compute_dtype(bank.dtypes.values())
        network.heads.mix(bank.tasks)
        self.stream = Stream(network, Probe.labelled(network, data, "test"))
        self.merged = placed(bank.merge(dtype=self.dtype, naming="canonical"), network, self.dtype)
        self.held: dict[str, Any] = {}

    @functools.cached_property
    def prototypes(self) -> tuple[Prototypes, float]:
        """With the CPU seconds that they took."""
        began = time.process_time()
        return Prototypes.collect(self.bank, self.network, self.data), time.process_time() - began

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name == "merge":
            return self._both(self._merge)
        if name == "task known":
            return {"head known": self.stream.measure(self.bank.tasks, self._expert, False)}
        (prototypes, spent), began = self.prototypes, time.process_time()
        if name == LAYERS_KNOWN:
            self.parts = residuals(self.bank, prototypes.layers, RANK)
            return {"head known": self.stream.measure(self.bank.tasks, self._residual, False)}
        router = Router(self.bank, self.network, prototypes, cast(Route, name), RANK)
        about = {"bytes": router.nbytes, "made in": spent + time.process_time() - began}
        return self._both(lambda inputs, task, head: router(inputs, head)) | about

    def _both(self, ask: Ask) -> dict[str, Any]:
        return {name: self.stream.measure(self.bank.tasks, ask, name == "mixed") for name in ("head known", "mixed")}

    def _merge(self, inputs: Tensor, task: str, head: str) -> tuple[Tensor, None]:
        return self.network(self.merged, {head: inputs})[head], None

    def _expert(self, inputs: Tensor, task: str, head: str) -> tuple[Tensor, None]:
        if task not in self.held:
            self.held = {task: self.bank.expert(task, self.dtype, "canonical")}
        return self.network(self.held[task], {task: inputs})[task], None

    def _residual(self, inputs: Tensor, task: str, head: str) -> tuple[Tensor, None]:
        """As ESM++ would if every layer chose right."""
        prototypes, _ = self.prototypes
        routes = LayerRoutes(self.merged, prototypes, self.parts, len(inputs), mask_of(self.network, inputs))
        routes.choices = dict.fromkeys(prototypes.layers, torch.full((len(inputs),), self.bank.tasks.index(task)))
        return self.network.heads(run_watched(self.network, self.merged, inputs, routes), head), None


def table(found: dict[str, Any]) -> Iterator[str]:
    """Markdown."""
    yield f"{found['suite']}, {found['bank']}, {found['bytes'] / 1e6:.1f} MB"
    yield ""
    heads = ["head known", "head unknown", "taken for their own task", "MB besides the bank", "CPU s to prepare"]
    yield "| | " + " | ".join([*heads, "CPU s per 1,000 inputs"]) + " |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in found["rows"].items():
        mixed = row.get("mixed", {})
        cells = [f"{row['head known']['accuracy']:.1f}", f"{mixed['accuracy']:.1f}" if mixed else ""]
        cells.append(f"{mixed['routing']:.1f}" if "routing" in mixed else "")
        cells += [f"{row['bytes'] / 1e6:.2f}", f"{row['made in']:.0f}"] if "bytes" in row else ["", ""]
        yield f"| {name} | " + " | ".join([*cells, f"{(mixed or row['head known'])['seconds']:.1f}"]) + " |"


def table_over_seeds(folder: Path) -> Iterator[str]:
    """Markdown: mean and deviation over the seeds of a suite's experts."""
    kinds = over_seeds(folder, "routing")
    columns = (("head known", "accuracy"), ("mixed", "accuracy"), ("mixed", "routing"))
    said = ("head known", "head unknown", "own task")
    yield "| | " + " | ".join(f"{kind} ({len(one)}): {what}" for kind, one in kinds.items() for what in said) + " |"
    yield "|---" * (1 + len(said) * len(kinds)) + "|"
    for name in NAMES:
        cells = []
        for seeds in kinds.values():
            for head, what in columns:
                rows = [one["rows"].get(name, {}).get(head, {}) for one in seeds]
                values = [row[what] for row in rows if what in row]
                cells.append(spread(values) if values else "")
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["zoo:8"], help="(default: zoo:8)")
    parser.add_argument("--rank_ratio", type=float, default=0.16, help="of CART (default: %(default)s)")
    parser.add_argument("--scaling", type=float, default=5.0, help="of the merge (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path("docs/results"), help="of the results (default: %(default)s)"
    )
    parser.add_argument("--print", action="store_true", help="measure nothing")
    parser.add_argument("--seeds", action="store_true", help="print one table of all that is measured, over seeds")
    options = parser.parse_args()
    plain_warnings()
    if options.seeds:
        print("\n".join(table_over_seeds(options.folder)))
        return 0
    for suite in options.suites:
        output = options.folder / f"routing-{suite.replace(':', '-')}.json"
        if not options.print:
            opened = open_suite(suite)
            method = CART(options.rank_ratio, options.scaling)
            bank = build_bank(opened.experts, method=method)
            found: dict[str, Any] = {"suite": suite, "bank": str(method), "bytes": bank.nbytes, "rows": {}}
            if output.exists() and (before := json.loads(output.read_text("utf-8")))["bank"] == found["bank"]:
                found = before
            measured = Rows(bank, opened.network, opened.data)
            for name in NAMES:
                if name not in found["rows"]:
                    found["rows"][name] = measured[name]
                    print(f"{suite} {name}: {found['rows'][name]}", flush=True)
                    write_text(output, json.dumps(found, indent=1) + "\n", overwrite=True)
        print("\n".join(table(json.loads(output.read_text("utf-8")))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
