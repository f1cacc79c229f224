"""Where a fit stands: for a table that lives, a line, or a line of JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lit_merge.console import table

# Rows of tasks in a terminal of unknown height.
ROWS = 24


@dataclass(frozen=True)
class TaskStatus:
    """Of one task: the objective on the last batch; what the guard saw last, see `CollapseGuard`; and the lowest, mean
    and highest coefficient. What is not known is None."""

    objective: float | None = None
    entropy: float | None = None
    agreement: float | None = None
    balance: float | None = None
    lowest: float | None = None
    mean: float | None = None
    highest: float | None = None


@dataclass(frozen=True)
class FitStatus:
    """Of a fit.

    Attributes:
        step: optimiser steps that are done.
        of: steps in all; 0 where nobody knows.
        objective: of the last batch, mean over tasks.
        agreement: with the experts, mean over tasks, at the guard's last look.
        coefficients: lowest, mean and highest of all.
        rank: directions in use per matrix and task; None for banks of dense deltas.
        speed: inputs per second of all tasks.
        left: seconds until the end.
        guard: what it has to say.
        tasks: task → its own.
    """

    step: int
    of: int
    objective: float | None
    agreement: float | None
    coefficients: tuple[float, float, float]
    rank: float | None
    speed: float | None
    left: float | None
    guard: str = ""
    tasks: Mapping[str, TaskStatus] = field(default_factory=dict)

    def line(self) -> str:
        """Everything but the tasks."""
        whole = f" of {self.of}" if self.of else ""
        return f"step {self.step}{whole}: {', '.join(self.parts())}"

    def parts(self) -> list[str]:
        low, mean, high = self.coefficients
        found = [] if self.objective is None else [f"objective {self.objective:.3f}"]
        found += [] if self.agreement is None else [f"agreement {100 * self.agreement:.1f} %"]
        found += [f"λ {mean:.3f} ({low:.3f} to {high:.3f})"]
        found += [] if self.rank is None else [f"rank {self.rank:.4g}"]
        found += [] if self.speed is None else [f"{self.speed:.3g} inputs/s"]
        found += [] if self.left is None else [f"{clock(self.left)} left"]
        return found

    def as_dict(self) -> dict[str, Any]:
        low, mean, high = self.coefficients
        return asdict(self) | {"coefficients": {"lowest": low, "mean": mean, "highest": high}}

    def table(self, rows: int = ROWS) -> Group:
        """A row per task, as many as there is room for, and the line below."""
        numbers = ("objective", "entropy", "agree-\nment %", "balance", "λ mean", "λ lowest", "λ highest")
        made: Table = table("task", *numbers, right=numbers)
        shown = list(self.tasks.items())[:rows]
        for name, one in shown:
            agreement = None if one.agreement is None else 100 * one.agreement
            values = (one.objective, one.entropy, agreement, one.balance, one.mean, one.lowest, one.highest)
            digits = (3, 3, 1, 2, 3, 3, 3)
            cells = ("–" if v is None else f"{v:.{d}f}" for v, d in zip(values, digits, strict=True))
            made.add_row(Text(name), *cells)
        hidden = len(self.tasks) - len(shown)
        notes = [f"… and {hidden} more tasks"] if hidden else []
        notes += [", ".join(self.parts())]
        notes += [f"guard: {self.guard}"] if self.guard else []
        return Group(made, Text("\n".join(notes)))


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some.

    >>> clock(46.4), clock(3725)
    ('0:46', '1:02:05')
    """
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
