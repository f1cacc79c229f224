"""How a fit or an evaluation is shown while it runs: live in a terminal, in lines elsewhere, or as lines of JSON."""

import time
from abc import ABC, abstractmethod

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lit_merge.console import event, manner, say, terminal
from lit_merge.report.fit_status import FitStatus
from lit_merge.report.scores import TaskScore, mean_accuracy

# Lines of a fit where there is no terminal.
LINES = 10
# Lines of a terminal that a table leaves to the rest.
OTHER_LINES = 9


class Display(ABC):
    """What is shown of one pass: of a fit, an evaluation, or predictions.

    Args:
        what: in words, as `experts`.
        total: steps or batches; 0 where nobody knows.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.started = what, total, time.monotonic()

    def wants(self, done: int) -> bool:
        """Whether the status after so many steps would be shown: it takes a little time to find out."""
        return False

    @abstractmethod
    def update(self, done: int, status: FitStatus | None = None) -> None: ...

    @abstractmethod
    def end(self, scores: dict[str, TaskScore] | None = None) -> None:
        """The pass is over, or has failed; what it has scored."""


class Lines(Display):
    """A line every tenth of a fit, and one for every evaluation."""

    def wants(self, done: int) -> bool:
        return done in (1, self.total) or done % max(1, (self.total or 100 * LINES) // LINES) == 0

    said = False

    def update(self, done: int, status: FitStatus | None = None) -> None:
        if status is not None and self.wants(done):
            self.said = True
            say(status.line())

    def end(self, scores: dict[str, TaskScore] | None = None) -> None:
        taken = f"{time.monotonic() - self.started:.0f} s"
        if scores:
            say(f"{self.what}: {100 * mean_accuracy(scores):.1f} % right, mean of {len(scores)} tasks ({taken})")
        elif not self.said:
            say(f"{self.what}: {taken}")


class Bars(Lines):
    """A bar, above it a table of the tasks of a fit. When the pass is over, a line is left of it."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__(what, total)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._screen = terminal(stderr=True)
        self._bars = Progress(*columns, TimeRemainingColumn(), console=self._screen)
        self._bar = self._bars.add_task(what, total=total or None)
        self._live = Live(self._bars, console=self._screen, transient=True, refresh_per_second=4)
        self._live.start()
        self._status: FitStatus | None = None

    def wants(self, done: int) -> bool:
        return done == 1 or done == self.total or done % 5 == 0

    def update(self, done: int, status: FitStatus | None = None) -> None:
        self._bars.update(self._bar, completed=done)
        if status is not None:
            self._status = status
            self._live.update(Group(status.table(max(3, self._screen.height - OTHER_LINES)), self._bars))

    def end(self, scores: dict[str, TaskScore] | None = None) -> None:
        self._live.stop()
        if self._status is not None:
            say(self._status.line())
            self.said = True
        super().end(scores)


class JSONLines(Display):
    """Events `step`, of every tenth step at least, and `scores`."""

    def wants(self, done: int) -> bool:
        return done in (1, self.total) or done % 10 == 0

    def update(self, done: int, status: FitStatus | None = None) -> None:
        if status is not None:
            event("step", status.as_dict())

    def end(self, scores: dict[str, TaskScore] | None = None) -> None:
        if scores:
            event("scores", {"of": self.what, "tasks": {task: score.as_dict() for task, score in scores.items()}})


class Nothing(Display):
    def update(self, done: int, status: FitStatus | None = None) -> None:
        pass

    def end(self, scores: dict[str, TaskScore] | None = None) -> None:
        pass


def display(what: str, total: int) -> Display:
    """As the user wants it, and as standard error allows."""
    now = manner()
    kind = JSONLines if now.json else Nothing if now.quiet else Bars if now.live else Lines
    return kind(what, total)
