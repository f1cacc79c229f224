"""What is lost where nobody says which task an input is of: the merge, the experts of a bank chosen input by input, and
the same with the task known, on test inputs of all tasks shuffled into one stream.

Prototypes are made of the unlabelled inputs to adapt on; nothing is chosen by labels. With the head known an input is
classified among the classes of its own task, otherwise among those of all tasks..

    python scripts/benchmark_routing.py                                 # zoo:8
    python scripts/benchmark_routing.py --suites zoo:14 zoo:20 text:0   # once they are built
    python scripts/benchmark_routing.py --print                         # the tables of what is measured already
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any, get_args

import torch
from suites import open_suite
from torch import Tensor

from lit_merge import CART, Prototypes, TaskBank, build_bank
from lit_merge.adaptation.routing.router import Route, Router
from lit_merge.checkpoints import write_text
from lit_merge.choose.sample import Probe
from lit_merge.console import plain_warnings
from lit_merge.data.class_names import MIXED
from lit_merge.networks import Network, compute_dtype

BATCH = 256
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


def rows(bank: TaskBank, network: Network, data: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is measured, row by row."""
    dtype = compute_dtype(bank.dtypes.values())
    network.heads.mix(bank.tasks)
    stream = Stream(network, Probe.labelled(network, data, "test"))
    merged = bank.merge(dtype=dtype, naming="canonical")
    held: dict[str, Any] = {}

    def merge(inputs: Tensor, task: str, head: str) -> tuple[Tensor, None]:
        return network(merged, {head: inputs})[head], None

    def known(inputs: Tensor, task: str, head: str) -> tuple[Tensor, None]:
        if task not in held:
            held.clear()
            held[task] = bank.expert(task, dtype, "canonical")
        return network(held[task], {task: inputs})[task], None

    yield (
        "merge",
        {"head known": stream.measure(bank.tasks, merge, False), "mixed": stream.measure(bank.tasks, merge, True)},
    )
    yield "task known", {"head known": stream.measure(bank.tasks, known, False)}
    began = time.process_time()
    prototypes = Prototypes.collect(bank, network, data)
    spent = time.process_time() - began
    for route in get_args(Route):
        began = time.process_time()
        router = Router(bank, network, prototypes, route)
        about = {"bytes": router.nbytes, "made in": spent + time.process_time() - began}

        def routed(inputs: Tensor, task: str, head: str, router: Router = router) -> tuple[Tensor, Tensor]:
            return router(inputs, head)

        yield (
            route,
            {
                "head known": stream.measure(bank.tasks, routed, False),
                "mixed": stream.measure(bank.tasks, routed, True),
            }
            | about,
        )


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["zoo:8"], help="(default: zoo:8)")
    parser.add_argument("--rank_ratio", type=float, default=0.16, help="of CART (default: %(default)s)")
    parser.add_argument("--scaling", type=float, default=5.0, help="of the merge (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path("docs/results"), help="of the results (default: %(default)s)"
    )
    parser.add_argument("--print", action="store_true", help="measure nothing")
    options = parser.parse_args()
    plain_warnings()
    for suite in options.suites:
        output = options.folder / f"routing-{suite.replace(':', '-')}.json"
        if not options.print:
            opened = open_suite(suite)
            method = CART(options.rank_ratio, options.scaling)
            bank = build_bank(opened.experts, method=method)
            found = {
                "suite": suite,
                "bank": str(method),
                "bytes": bank.nbytes,
                "threads": torch.get_num_threads(),
                "rows": {},
            }
            for name, row in rows(bank, opened.network, opened.data):
                found["rows"][name] = row
                print(f"{suite} {name}: {row}", flush=True)
            write_text(output, json.dumps(found, indent=1) + "\n", overwrite=True)
        print("\n".join(table(json.loads(output.read_text("utf-8")))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
