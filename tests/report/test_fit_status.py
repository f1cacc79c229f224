"""A fit's status as a table and as a line."""

import io

from lit_merge.console import terminal
from lit_merge.report.fit_status import FitStatus, TaskStatus


def test_tasks_that_do_not_fit_are_counted() -> None:
    one = TaskStatus(0.5, 1.25, 0.75, 0.9, 0.8, 1.0, 1.2)
    tasks = {f"[task] {i}": one for i in range(30)}
    status = FitStatus(40, 200, 0.5, 0.75, (0.8, 1.0, 1.2), 12.0, 320.0, 65.0, "healthy at step 40", tasks)
    console = terminal(file=io.StringIO(), width=100)
    console.print(status.table(rows=5))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.split() for line in text.splitlines() if "[task]" in line]
    assert rows == [["[task]", str(i), "0.500", "1.250", "75.0", "0.90", "1.000", "0.800", "1.200"] for i in range(5)]
    assert "… and 25 more tasks" in text
    assert "guard: healthy at step 40" in text
    line = "objective 0.500, agreement 75.0 %, λ 1.000 (0.800 to 1.200), rank 12, 320 inputs/s, 1:05 left"
    assert status.line() == f"step 40 of 200: {line}"


def test_what_is_not_known_is_left_out() -> None:
    status = FitStatus(1, 0, None, None, (1.0, 1.0, 1.0), None, None, None, tasks={"a": TaskStatus()})
    assert status.line() == "step 1: λ 1.000 (1.000 to 1.000)"
    console = terminal(file=io.StringIO(), width=100)
    console.print(status.table())
    assert console.file.getvalue().count("–") == 7  # type: ignore[attr-defined]
