"""An analysis on the console."""

from rich.console import Group
from rich.text import Text

from lit_merge.console import table
from lit_merge.report.analysis.build import Analysis
from lit_merge.report.analysis.figures import DIVISORS

# What the authors of CART release for 8, 14 and 20 tasks is about this.
SHOWN = (0.08, 0.16, 0.32)


def analysis_table(analysis: Analysis) -> Group:
    """Interference, error and kept energy at a few ranks, then cosines and the rank that keeps 90 %."""
    numbers = ("k /\nmin(m, n)", "interference\nI(k)", "error R(k)\n% of norm²", "kept energy\n%")
    rows = table("task vectors", *numbers, right=numbers)
    for anchor in analysis.anchors:
        for i, ratio in enumerate(SHOWN):
            loss = 100 * analysis.loss(anchor, ratio)
            message = f"{analysis.interference(anchor, ratio):.4f}", f"{loss:.1f}", f"{100 - loss:.1f}"
            rows.add_row("" if i else anchor, f"{ratio:.2f}", *message)
        rows.add_section()
    return Group(rows, Text("\n".join(_lines(analysis))))


def _lines(analysis: Analysis) -> list[str]:
    lines = []
    for anchor in analysis.anchors:
        cosine, shares = analysis.mean_absolute_cosine(anchor), analysis.rank_ratios_keeping(anchor)
        message = [] if cosine is None else [f"mean |cosine| between task vectors {cosine:.3f}"]
        if shares:
            mean = sum(shares) / len(shares)
            message.append(
                f"90 % of the energy in {100 * mean:.0f} % of the directions "
                f"({100 * min(shares):.0f} to {100 * max(shares):.0f} % by matrix)"
            )
        lines.append(f"{anchor}: {'; '.join(message) or 'all zero'}.")
    lines.append(
        f"{analysis.size}. I: mean over matrices, σ over the sum of {DIVISORS[analysis.normalise]}; "
        "R: all matrices together."
    )
    return lines + [f"Note: {note}." for note in analysis.notes]
