"""What to try next, where a fit has brought little."""

from lit_merge.report.run_folder import RunFolder

# Of the agreement with the experts, or of the accuracy.
LITTLE = 0.01
SWEEP = "sweep first, if scale and rank were not chosen yet: `sweep --select agreement` with the same configuration"
TEACHERS = "let the experts teach, which learns more: the stages of configs/cart_teachers.yaml (docs/adaptation.md)"


def advice(run: RunFolder) -> str:
    """In words; empty where a fit has helped, or nobody knows. It looks at what the guard saw, which needs no label,
    and at accuracies where there was no guard."""
    seen = _agreements(run)
    if len(seen) > 1:
        steps = sorted(seen)
        kept = run.report.kept["step"] if run.report is not None and run.report.kept else steps[-1]
        before, after, what = seen[steps[0]], seen.get(kept, seen[steps[-1]]), "agreement with the experts"
    elif run.report is not None and {"static", "adapted"} <= set(run.report.states):
        mean = run.report.mean_row()
        before, after = mean["static_accuracy"] or 0.0, mean["adapted_accuracy"] or 0.0
        what = "accuracy"
    else:
        return ""
    if after - before >= LITTLE:
        return ""
    found = f"{what} {100 * before:.1f} % before, {100 * after:.1f} % after"
    return f"The adaptation brought little ({found}). Try one of two: {SWEEP}; or {TEACHERS}."


def _agreements(run: RunFolder) -> dict[int, float]:
    """Step → mean over tasks, where experts were asked."""
    values: dict[int, list[float]] = {}
    for row in run.guard:
        if row["agreement"] is not None:
            values.setdefault(row["step"], []).append(row["agreement"])
    return {step: sum(found) / len(found) for step, found in values.items()}
