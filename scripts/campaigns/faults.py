"""Full disks and read errors at every file event of every verb that writes."""

import errno

from campaigns.file_events import WRITES, Event
from campaigns.kills import Disturbed, Undisturbed
from campaigns.trees import difference, tree
from campaigns.trial import CLEAN, RIGHT, Result, failed

GROWS = (*WRITES, "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat")


class Faults(Disturbed):
    """Base: the command must be refused in one line and change nothing, or end as it does without the fault. Then the
    same command must end so."""

    error = 0

    def fails(self, event: Event, place: int) -> bool:
        """Whether an event fails in the trial of an event."""
        return event.number == place

    def trial(self, number: int) -> Result:
        known, place = self.choose(number)
        about = f"{known.command.name}, {errno.errorcode[self.error]} at {known.events[place]}"
        self.begin(known.command)
        decide = lambda event: self.error if self.fails(event, place) else None  # noqa: E731
        ended = self.held(known.command, decide)
        if not ended.code:
            # What a broken disk does not remove, the next command does.
            gone = ".writing" if self.error == errno.EIO else "/"
            found = {path: what for path, what in tree(self.place.work).items() if gone not in path.partition("/")[0]}
            wrong = difference(found, known.end, known.loose)
            return failed(about, f"exit 0, but {wrong}") if wrong else Result(RIGHT, about)
        wrong = "" if ended.refused else str(ended)
        wrong = wrong or self.half(known) or self.left(known) or self.finish(known)
        return failed(about, wrong) if wrong else Result(CLEAN, about)

    def left(self, known: Undisturbed) -> str:
        """What a refused command has changed. A fit keeps what it has done, hidden, for the same command; a folder that
        the disk does not list any more stays for the same command too, which then removes it. Decompositions and
        prototypes, which later commands read, stay; so does what a callback of a fit has put in its place, whole."""
        free = (".",) if self.error == errno.EIO else (".out.unfinished",)
        now, start = (
            {path: what for path, what in one.items() if not path.startswith((*free, "kept", "p.safetensors", "small"))}
            for one in (tree(self.place.work), known.start)
        )
        return difference(now, start)


class FullDisk(Faults):
    """No room for what is written from some event on."""

    name, error, share = "full", errno.ENOSPC, 2.0

    def fails(self, event: Event, place: int) -> bool:
        return event.number >= place and (event.call in GROWS or event.creates)


class ReadErrors(Faults):
    """One call that reads, or changes something, fails as on a broken disk."""

    name, error, reads, share = "errors", errno.EIO, True, 2.0
