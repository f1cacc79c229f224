"""Kills at every file event of every verb that writes; then the same command runs to its end."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from campaigns import forks
from campaigns.file_events import KILL, Decide, Event, run_held
from campaigns.forks import Ended
from campaigns.trees import Tree, difference, tree
from campaigns.trial import RIGHT, Campaign, Place, Result, failed
from campaigns.verbs import Command, commands


@dataclass(frozen=True)
class Undisturbed:
    """A command that was run twice without a fault.

    Attributes:
        events: before each of which it can be disturbed.
        start: what the folder held before.
        end: what it holds afterwards.
        loose: files that no two runs write alike, as those with a date.
    """

    command: Command
    events: tuple[Event, ...]
    start: Tree
    end: Tree
    loose: frozenset[str]


class Disturbed(Campaign):
    """Base of campaigns that disturb commands at their events."""

    holds: ClassVar[bool] = True
    reads: ClassVar[bool] = False
    """Whether events that read count, those on the inputs too."""

    _known: ClassVar[dict[tuple[Path, str, bool], Undisturbed]] = {}

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(place, seed)
        self.commands = commands(place.inputs)

    def choose(self, number: int) -> tuple[Undisturbed, int]:
        """The command and the event of a trial. Quick commands come in turn, then one of the slow ones, and so on; of a
        command's events the next in a drawn order."""
        quick, slow = ([one for one in self.commands if one.slow is which] for which in (False, True))
        turn, place = divmod(number, len(quick) + bool(slow))
        if place < len(quick):
            command = self.draw(-1).sample(quick, len(quick))[place]
        else:
            turn, place = divmod(turn, len(slow))
            command = slow[place]
        known = self.undisturbed(command)
        places = self.draw(-2).sample(range(len(known.events)), len(known.events))
        return known, places[turn % len(places)]

    def undisturbed(self, command: Command) -> Undisturbed:
        """What a command does by itself."""
        key = (self.place.root, command.name, self.reads)
        if key not in self._known:
            ends = []
            for _ in range(2):
                self.begin(command)
                start, events = tree(self.place.work), []
                ended = self.held(command, events.append)
                if ended.code:
                    raise RuntimeError(f"{command.name} fails without a fault: {ended}")
                ends.append(tree(self.place.work))
            loose = frozenset(path for path in ends[0] if ends[0][path] != ends[1].get(path))
            self._known[key] = Undisturbed(command, tuple(events), start, ends[1], loose)
        return self._known[key]

    def held(self, command: Command, decide: Decide) -> Ended:
        """Runs a command and asks before every event."""
        also = (self.place.inputs,) if self.reads else ()
        return run_held(forks.command(command.arguments), self.place.work, decide, self.reads, also)

    def begin(self, command: Command) -> None:
        """The folder as it is before a command: empty, or with what another command has written."""
        work, kept = self.place.emptied(), self.place.kept / command.name
        if not command.before:
            return
        if not kept.exists():
            if (ended := forks.run(command.before, work)).code:
                raise RuntimeError(f"{command.name} cannot begin: {ended}")
            shutil.copytree(work, kept)
        shutil.rmtree(work)
        shutil.copytree(kept, work)

    def half(self, known: Undisturbed) -> str:
        """What is wrong with the outputs of a command that was stopped: each is the old one or the new one, whole."""
        for name in known.command.outputs:
            now, old, new = (
                {path: what for path, what in one.items() if path == name or path.startswith(f"{name}/")}
                for one in (tree(self.place.work), known.start, known.end)
            )
            if name != "kept" and difference(now, old) and difference(now, new, known.loose):
                return f"{name} is neither the old nor the new one: {difference(now, new, known.loose)}"
        return ""

    def finish(self, known: Undisturbed) -> str:
        """Runs the command to its end after it was stopped; what is wrong then."""
        return self.ended(known, forks.run(known.command.arguments, self.place.work))

    def ended(self, known: Undisturbed, ended: Ended) -> str:
        """What is wrong at the end of a command that was stopped before: it must be as undisturbed, or be refused since
        the output is there, whole."""
        there = ended.refused and "exists" in ended.err
        if ended.code and not there:
            return f"the same command ends otherwise: {ended}"
        wrong = difference(tree(self.place.work), known.end, known.loose)
        return f"after the same command{' was refused as the output exists' if there else ''}, {wrong}" if wrong else ""

    def ended_without_kept(self, known: Undisturbed, ended: Ended) -> str:
        """Likewise, but for kept decompositions: what is lost of them is made again when it is asked for, and what is
        damaged is seen when it is read."""
        shutil.rmtree(self.place.work / "kept", ignore_errors=True)
        end = {path: what for path, what in known.end.items() if path[:4] != "kept"}
        return self.ended(replace(known, end=end), ended)


class Kills(Disturbed):
    """At every event that changes a file."""

    name = "kills"
    share = 3.0

    def trial(self, number: int) -> Result:
        known, place = self.choose(number)
        about = f"{known.command.name}, killed before {known.events[place]}"
        self.begin(known.command)
        decide = lambda event: KILL if event.number == place else None  # noqa: E731
        self.held(known.command, decide)
        wrong = self.half(known) or self.finish(known)
        return failed(about, wrong) if wrong else Result(RIGHT, about)
