"""What a report page says of one run, as JSON: everything that figures and tables show."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_merge.bank.on_demand import without_values
from lit_merge.bank.task_bank import TaskBank
from lit_merge.experts.matrices import block_of
from lit_merge.report.analysis.build import Analysis
from lit_merge.report.analysis.of_bank import analyze_bank
from lit_merge.report.report import describe
from lit_merge.report.run_folder import Look, RunFolder
from lit_merge.report.training_curves import training_curves
from lit_merge.report.weight_order import display_order

# Points of a curve, and looks at the coefficients: more are not seen.
POINTS, LOOKS = 200, 12
# Places of a spectrum.
PLACES = 60
EVERY_STATE = ("pretrained", "static", "online", "first", "adapted", "routed", "expert")

About = dict[str, Any]


def content_of(run: RunFolder) -> About:
    """Everything about a run; what it lacks is None."""
    report, bank = run.report, run.bank
    scored = report is not None and bool(report.tasks)
    about: About = {
        "name": run.name,
        "folder": str(run.path),
        "method": report.method if report is not None else describe(bank) if bank is not None else "",
        "protocol": None if report is None else report.protocol,
        "kept": None if report is None or not report.kept else dict(report.kept),
        "accuracy": None,
        "sizes": sizes_of(run),
        "coefficients": coefficients_of(run),
        "curves": curves_of(run),
        "bank": None if bank is None else bank_of(bank),
        "samples": run.samples,
        "versions": dict(run.versions),
        "config": run.config,
        "command": command_of(run),
    }
    if report is not None and scored:
        rows = {task: report.row(task) for task in report.tasks}
        about["accuracy"] = {"split": report.split, "states": report.states, "tasks": rows, "mean": report.mean_row()}
    return about


def command_of(run: RunFolder) -> str:
    """The command that makes such a run; empty where the configuration was not kept."""
    if not run.config:
        return ""
    return f"lit-merge fit --config {shlex.quote(str(run.path / 'config.yaml'))} --run another-run"


def sizes_of(run: RunFolder) -> list[tuple[str, int]]:
    """What is compared, and its bytes."""
    sizes = {} if run.report is None else run.report.sizes
    found = [("experts together", sizes["experts"])] if sizes.get("experts") else []
    if run.bank is not None:
        found.append(("one model", sum(value.nbytes for value in without_values(run.bank.origin).values())))
    return [*found, ("task bank", sizes["bank"])] if sizes.get("bank") else found


def coefficients_of(run: RunFolder) -> About | None:
    """Coefficients of every task and weight at a few steps, weights in the order of their blocks."""
    layers, looks = run.coefficients
    if not looks or not layers:
        return None
    order, report = display_order(layers), run.report
    kept = report.kept if report is not None else None
    chosen = thinned(looks, LOOKS)
    tasks = list(looks[0].values)
    return {
        "layers": [{"name": layers[i], "block": block_of(layers[i]).rstrip(".")} for i in order],
        "tasks": tasks,
        "looks": [
            {"step": look.step, "note": _note(look, looks, kept), "values": _rounded(look, tasks, order)}
            for look in chosen
        ],
    }


def _note(look: Look, looks: Sequence[Look], kept: Mapping[str, Any] | None) -> str:
    if look is looks[0]:
        return "start"
    if look is looks[-1]:
        return "end" if kept is None else f"end: those of step {kept['step']}, which were kept"
    return "" if kept is None or look.step <= kept["step"] else "thrown away"


def _rounded(look: Look, tasks: Sequence[str], order: Sequence[int]) -> list[list[float | None]]:
    return [[short(look.values[task][i]) for i in order] for task in tasks]


def curves_of(run: RunFolder) -> list[About]:
    """Curves along the steps that have points: title, and task → points."""
    found = []
    for title, curves in training_curves(run).items():
        points = {
            task: [(step, short(y)) for step, y in thinned(curve, POINTS)] for task, curve in curves.items() if curve
        }
        if points:
            found.append({"title": title, "curves": points})
    return found


def bank_of(bank: TaskBank) -> About:
    """What the bank's deltas look like; `why` says it where there is nothing to look at."""
    ranks = sorted(set(bank.ranks.values()))
    about: About = {"ranks": ranks, "weights": len(bank.origin), "deltas": len(bank.layers), "why": ""}
    if bank.shared:
        return about | {
            "why": "The method made one delta for all tasks, so that there is nothing to compare between tasks."
        }
    if not ranks:
        return about | {"why": "The bank's deltas are dense: `analyze` looks at the experts themselves."}
    return about | analysis_of(analyze_bank(bank))


def analysis_of(found: Analysis) -> About:
    """Interference and kept energy at every rank, cosines and spectra, by anchor."""
    anchors = {
        anchor: {
            "curves": [_at(found, anchor, ratio) for ratio in found.ratios],
            "cosines": [[short(value) for value in row] for row in found.cosines(anchor).tolist()],
            "spectra": {kind: spectrum(found, anchor, names) for kind, names in found.kinds.items()},
        }
        for anchor in found.anchors
    }
    return {"tasks": list(found.tasks), "anchors": anchors}


def _at(found: Analysis, anchor: Any, ratio: float) -> list[float | None]:
    """Rank in %, interference and kept energy in %."""
    return [short(100 * ratio), short(found.interference(anchor, ratio)), short(100 - 100 * found.loss(anchor, ratio))]


def spectrum(found: Analysis, anchor: Any, names: Iterable[str]) -> list[tuple[float | None, float | None]]:
    """(index in % of min(m, n), σ over the sum of all in %), mean over tasks and matrices of a kind."""
    sums: dict[int, list[float]] = {}
    for name in found.moved(anchor, names):
        S = found.curves[anchor][name].S
        shares = S[S.sum(1) > 0] / S[S.sum(1) > 0].sum(1, keepdim=True)
        for place in range(PLACES):
            index = min(S.shape[1] - 1, place * S.shape[1] // PLACES)
            sums.setdefault(place, []).append(100 * shares[:, index].mean().item())
    means = [(100 * (place + 0.5) / PLACES, sum(values) / len(values)) for place, values in sums.items()]
    return [(short(x), short(y)) for x, y in means if y > 0]


def thinned(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def short(value: float) -> float | None:
    """Four digits are seen; what is not finite is none."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
