"""Tasks that arrive one at a time: a bank that grows without the old experts, against one that is built anew of all
experts each time, and against OPCM (arXiv 2501.09522), which merges sequentially into one model.

Banks of CART are compared merged and with the task known. One of them grows at twice the rank, and is cut before it is
used. OPCM, at its authors' α = .5, is written anew here from the paper. Mean test accuracy over the tasks that have
arrived, and how far the grown banks' experts are from those of the one that is built anew.

    python scripts/benchmark_growing.py                                 # zoo:8
    python scripts/benchmark_growing.py --suites zoo:14 zoo:20          # once they are built
    python scripts/benchmark_growing.py --print                         # the tables of what is measured already
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from suites import open_suite
from torch import Tensor

from lit_merge import CART, Experts, TaskBank, add_task, build_bank, remove_task
from lit_merge.checkpoints import write_text
from lit_merge.choose.sample import Probe
from lit_merge.console import plain_warnings
from lit_merge.experts.matrices import select_matrices
from lit_merge.networks import Network

FIRST = 2
Weights = Mapping[str, Tensor]


class OPCM:
    """Continual merging by orthogonal projection: of every task vector the part that lies in the leading subspace of
    the merge so far is left out, and the sum is scaled to the mean norm of the task vectors.

    Args:
        base: θ₀, in float32.
        alpha: share of the sum of singular values that makes up the leading subspace.
    """

    def __init__(self, base: Weights, alpha: float = 0.5) -> None:
        self.base, self.alpha = dict(base), alpha
        self.matrices = select_matrices({name: tuple(value.shape) for name, value in base.items()}, "block")
        self.total = {name: torch.zeros_like(value) for name, value in base.items()}
        self.norms: list[float] = []

    def add(self, expert: Weights) -> None:
        vectors = {name: expert[name] - value for name, value in self.base.items()}
        self.norms.append(norm(vectors))
        for name, vector in vectors.items():
            projected = name in self.matrices and self.total[name].any()
            self.total[name] += self.without_leading(self.total[name], vector) if projected else vector

    def without_leading(self, merged: Tensor, vector: Tensor) -> Tensor:
        """The entries of Uᵀ·τ·V outside the leading block and off the diagonal."""
        u, s, v = torch.linalg.svd(merged, full_matrices=False)
        leading = int((s.cumsum(0) / s.sum() <= self.alpha).sum())
        inner = u.mT @ vector @ v.mT
        inner.diagonal().zero_()
        inner[:leading, :leading] = 0
        return u @ inner @ v

    def merged(self) -> dict[str, Tensor]:
        scale = mean(self.norms) / norm(self.total)
        return {name: value + scale * self.total[name] for name, value in self.base.items()}


def norm(weights: Weights) -> float:
    return sum(value.double().square().sum().item() for value in weights.values()) ** 0.5


def accuracy(network: Network, probe: Probe, tasks: list[str], weights: Callable[[str | None], Weights]) -> list[float]:
    """Mean accuracy in % of the weights for None, and of every task's own."""
    found: list[float] = []
    for known in (False, True):
        each, held = [], None if known else weights(None)
        for task in tasks:
            one = Probe(network, {task: probe.inputs[task]}, {task: probe.labels[task]})
            each.append(one.read(weights(task) if held is None else held).accuracy[task])
        found.append(100 * mean(each))
    return found


def of_bank(bank: TaskBank) -> Callable[[str | None], Weights]:
    def weights(task: str | None) -> Weights:
        merge = bank.merge if task is None else bank.only(task).merge
        return merge(dtype=torch.float32, naming="canonical")

    return weights


def apart(one: TaskBank, other: TaskBank) -> float:
    """How far the tasks' weights are apart, in % of the norm of all deltas of the other bank."""
    moved = whole = 0.0
    for task in one.tasks:
        a, b = one.only(task), other.only(task)
        for name in other.layers:
            value = b.weight(name, torch.float32).double()
            moved += (a.weight(name, torch.float32).double() - value).square().sum().item()
            whole += (value - other.origin[name].double()).square().sum().item()
    return 100 * (moved / whole) ** 0.5


def rows(experts: Experts, network: Network, probe: Probe, method: CART) -> Iterator[dict[str, Any]]:
    """One for every number of tasks."""
    tasks = list(experts.tasks)
    assert experts.base is not None
    read = {task: {n: experts.checkpoints[task].read(n) for n in experts.shapes} for task in tasks}
    peer = OPCM({name: experts.base.read(name).float() for name in experts.shapes})
    grown: TaskBank | None = None
    wide: TaskBank | None = None
    double = CART(min(1.0, 2 * method.rank_ratio), method.scaling)
    for count in range(1, len(tasks) + 1):
        arrived = tasks[:count]
        peer.add({name: value.float() for name, value in read[arrived[-1]].items()})
        if count < FIRST:
            continue
        scratch = build_bank({task: read[task] for task in arrived}, method=method)
        change = None if grown is None else add_task(grown, arrived[-1], read[arrived[-1]])
        grown = scratch if change is None else change.bank
        files = {task: read[task] for task in arrived}
        wide = build_bank(files, method=double) if wide is None else add_task(wide, arrived[-1], read[arrived[-1]]).bank
        cut = wide.truncate(method.rank_ratio)
        merged = peer.merged()
        row: dict[str, float] = {}
        for way, bank in {"built": scratch, "grown": grown, "wide": cut}.items():
            together, known = accuracy(network, probe, arrived, of_bank(bank))
            row |= {f"{way} merged": together, f"{way} known": known}
        one = Probe(network, {t: probe.inputs[t] for t in arrived}, {t: probe.labels[t] for t in arrived})
        row["opcm"] = 100 * mean(one.read(merged).accuracy.values())
        distances = {"apart": apart(grown, scratch), "wide apart": apart(cut, scratch)}
        yield {"tasks": count, "cut": 100 * (change.cut if change else 0.0)} | distances | row
    assert grown is not None
    left, gone = tasks[:-1], tasks[-1]
    scratch = build_bank({task: read[task] for task in left}, method=method)
    full = build_bank(read, method=method)
    for label, change in {
        "removed": remove_task(full, gone),
        "removed, expert given": remove_task(full, gone, expert=read[gone]),
    }.items():
        row = {"cut": 100 * change.cut, "apart": apart(change.bank, scratch)}
        for way, bank in {"built": scratch, "grown": change.bank}.items():
            together, known = accuracy(network, probe, left, of_bank(bank))
            row |= {f"{way} merged": together, f"{way} known": known}
        yield {"tasks": f"{len(tasks)} → {len(left)}, {label}"} | row


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Markdown."""
    ways = ("anew", "grown", "grown at 2 × rank")
    heads = [*(f"merged: {way}" for way in (*ways, "OPCM")), *(f"task known: {way}" for way in ways)]
    heads += ["experts apart, %", "at 2 × rank", "said to be cut, %"]
    yield f"{found['suite']}, {found['method']}"
    yield ""
    yield "| tasks | " + " | ".join(heads) + " |"
    yield "|---" * (1 + len(heads)) + "|"
    for row in found["rows"]:
        keys = [f"{way} {what}" for what in ("merged", "known") for way in ("built", "grown", "wide")]
        keys = [*keys[:3], "opcm", *keys[3:], "apart", "wide apart", "cut"]
        cells = [f"{row[key]:.1f}" if key in row else "" for key in keys]
        yield f"| {row['tasks']} | " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", default=["zoo:8"], help="(default: zoo:8)")
    parser.add_argument("--rank_ratio", type=float, default=0.16, help="of CART (default: %(default)s)")
    parser.add_argument("--scaling", type=float, default=4.0, help="of the merge (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("docs/results"), help="(default: %(default)s)")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    options = parser.parse_args()
    plain_warnings()
    for suite in options.suites:
        output = options.folder / f"growing-{suite.replace(':', '-')}.json"
        if not options.print:
            opened, method = open_suite(suite), CART(options.rank_ratio, options.scaling)
            probe = Probe.labelled(opened.network, opened.data, "test")
            found: dict[str, Any] = {"suite": suite, "method": str(method), "rows": []}
            for row in rows(opened.experts, opened.network, probe, method):
                found["rows"].append(row)
                print(f"{suite}: {row}", flush=True)
            write_text(output, json.dumps(found, indent=1) + "\n", overwrite=True)
        print("\n".join(table(json.loads(output.read_text("utf-8")))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
