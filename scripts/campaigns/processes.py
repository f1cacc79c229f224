"""Fits of two processes, of which one is killed: the other ends with a line that names it, and the same command ends as
undisturbed."""

import os
import socket
from collections.abc import Callable

from campaigns import forks
from campaigns.file_events import KILL, Decide, Event, run_held
from campaigns.forks import Ended, Process
from campaigns.kills import Disturbed, Undisturbed
from campaigns.trees import difference, tree
from campaigns.trial import CLEAN, RIGHT, Place, Result, failed
from campaigns.verbs import Command

SECONDS = 15.0
"""So long the other process may take."""


class Processes(Disturbed):
    """In turn the first and the second process dies before an event of the first one."""

    name = "processes"
    share = 1.5

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(place, seed)
        fit = ("fit", "--config", str(place.inputs / "fit.yaml"), "--run", "out", "--trainer.devices", "2")
        self.commands = [Command("fit-of-two", fit, ("out", "small"))]
        self.second: Process | None = None

    def trial(self, number: int) -> Result:
        known, place = self.choose(number)
        first = number % 2 == 0
        about = f"fit of two, process {1 if first else 2} killed before {known.events[place]}"

        def decide(event: Event) -> int | None:
            if event.number == place and not first:
                assert self.second is not None
                self.second.kill()
            return KILL if event.number == place and first else None

        self.begin(known.command)
        ends = self.both(known.command, decide)
        left, verdict = ends[first], CLEAN
        if left.code == 0:
            verdict = RIGHT
            wrong = "" if first else difference(tree(self.place.work), known.end, known.loose)
        else:
            named = f"process {1 if first else 2} of 2 "
            wrong = "" if left.refused and named in left.err else f"the other one: {left}"
        wrong = wrong or self.half(known) or self.finish(known)
        return failed(about, wrong) if wrong else Result(verdict, about)

    def finish(self, known: Undisturbed) -> str:
        return self.ended(known, self.held(known.command, lambda event: None))

    def held(self, command: Command, decide: Decide) -> Ended:
        first, second = self.both(command, decide)
        return first if first.code else second

    def both(self, command: Command, decide: Decide) -> tuple[Ended, Ended]:
        """Runs both processes, as torchrun does, and asks before every event of the first one."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        works = [as_torchrun(command, rank, port) for rank in range(2)]
        self.second = Process(works[1], self.place.work)
        first = run_held(works[0], self.place.work, decide, seconds=SECONDS)
        return first, self.second.end(SECONDS)


def as_torchrun(command: Command, rank: int, port: int) -> Callable[[], object]:
    """One of two processes."""

    def work() -> object:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "one"}
        os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        return forks.command(command.arguments)()

    return work
