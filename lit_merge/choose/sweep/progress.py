"""How far a sweep is: a table that fills on a terminal, a line per point elsewhere, or events."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.text import Text

from lit_merge.choose.sweep.points import SELF_CONSISTENT, Point, Select
from lit_merge.choose.sweep.tables import in_words, tables
from lit_merge.console import event, manner, say, terminal
from lit_merge.report.fit_status import clock


class SweepProgress:
    """A context; it hears of every point.

    Args:
        total: points of the grid.
        select: what the table shows.
    """

    def __init__(self, total: int, select: Select) -> None:
        self.total, self.select = total, select
        self._started, self._known = time.monotonic(), -1
        screen = terminal(markup=True, stderr=True)
        self._live = Live(console=screen, transient=True, auto_refresh=False) if manner().live else None

    def __enter__(self) -> "SweepProgress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, points: Sequence[Point]) -> None:
        """All points that are known, the newest last."""
        done = sum(point.rule != SELF_CONSISTENT for point in points)
        if self._known < 0:
            # Points of an earlier attempt took no time of this one.
            self._known = done - 1
        seconds = (time.monotonic() - self._started) / max(1, done - self._known) * (self.total - done)
        place = f"point {done} of {self.total}, {clock(seconds)} left"
        if manner().json:
            event("point", {"done": done, "of": self.total, "left": seconds, **asdict(points[-1])})
        elif self._live is not None:
            self._live.update(Group(tables(points, None, self.select), Text(place)), refresh=True)
        else:
            rule = " (self-consistent)" if points[-1].rule == SELF_CONSISTENT else ""
            say(f"{place}: {in_words(points[-1])}{rule}")
