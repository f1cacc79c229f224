"""Stopping in time, so that a build can be done in stages."""

import math
import time
from typing import NoReturn


class Stopped(Exception):
    """The time asked for is over; what is done so far is on disk."""


class StopPoint:
    """The moment after which no new work begins."""

    def __init__(self, minutes: float | None) -> None:
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def passed(self) -> bool:
        """Whether it is time to stop."""
        return time.monotonic() > self._end

    def now(self) -> NoReturn:
        """Stops here."""
        raise Stopped

    def check(self) -> None:
        """Stops here when it is time to."""
        if self.passed():
            self.now()
