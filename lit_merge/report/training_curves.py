"""Curves of a run along its steps: of its log, and of what its guard saw."""

from collections.abc import Sequence

from lit_merge.report.run_folder import RunFolder

Curve = Sequence[tuple[int, float]]


def training_curves(folder: RunFolder) -> dict[str, dict[str, Curve]]:
    """Title of a panel → task, or `mean` → (step, value)."""
    guard, columns = folder.guard, [column for row in folder.log for column in row]
    logged = [column.removeprefix("loss/") for column in columns if column.startswith("loss/")]
    tasks = list(dict.fromkeys([*(row["task"] for row in guard), *logged]))
    found = {"objective, on the batches": _logged(folder, "loss", tasks)}
    for name, title in (("entropy", "entropy (nats)"), ("agreement", "agreement (%)"), ("balance", "balance")):
        factor = 100 if name == "agreement" else 1
        curves = {
            task: [(row["step"], factor * row[name]) for row in guard if row["task"] == task and row[name] is not None]
            for task in tasks
        }
        found[f"{title}, on the guard's inputs"] = {"mean": _mean(list(curves.values())), **curves}
    found["coefficient λ, mean over weights"] = _logged(folder, "coefficient", tasks)
    return found


def _logged(folder: RunFolder, name: str, tasks: Sequence[str]) -> dict[str, Curve]:
    curves = {task: folder.series(f"{name}/{task}") for task in tasks}
    return {"mean": folder.series(name), **{task: curve for task, curve in curves.items() if curve}}


def _mean(curves: Sequence[Curve]) -> Curve:
    values: dict[int, list[float]] = {}
    for step, value in (pair for curve in curves for pair in curve):
        values.setdefault(step, []).append(value)
    return [(step, sum(found) / len(found)) for step, found in sorted(values.items())]
