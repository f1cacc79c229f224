"""What a power cut may leave: changes that were not synced are there, or not, or in part.

The model is stricter than usual file systems. A file's values last from the fsync of the file on; before that it may
be as it was at its last fsync, empty, cut short, or with pages of zeros. What is made, renamed or removed in a folder
lasts from the fsync of that folder on; of later changes some of the first are there.
"""

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from campaigns import forks
from campaigns.file_events import KILL, WRITES, Event
from campaigns.kills import Disturbed
from campaigns.trial import CLEAN, RIGHT, Result, failed

NAMES = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir")


@dataclass
class Change:
    """A change of names that is not known to last.

    Attributes:
        event: which makes it.
        victim: copy of what it removes or replaces; None where there is nothing.
        exchanges: whether it swaps two.
    """

    event: Event
    victim: Path | None
    exchanges: bool = False

    @property
    def folders(self) -> set[Path]:
        return {path.parent for path in (self.event.path, self.event.other) if path}


@dataclass
class Disk:
    """Remembers, event by event, what lasts.

    Args:
        shadow: folder for copies.
    """

    shadow: Path
    changes: list[Change] = field(default_factory=list)
    dirty: set[int] = field(default_factory=set)
    synced: dict[int, Path] = field(default_factory=dict)
    """Inode → copy of its content as it lasts."""

    def before(self, event: Event) -> None:
        """Takes note of an event that is about to happen."""
        path = event.path
        if event.call in ("fsync", "fdatasync"):
            if path.is_dir():
                self.changes = [one for one in self.changes if path not in one.folders]
            elif path.exists():
                self.dirty.discard(number := path.stat().st_ino)
                self.synced[number] = self._copy(path)
        elif event.call in WRITES or (event.call.startswith("open") and event.changes and not event.creates):
            if path.exists():
                self.dirty.add(path.stat().st_ino)
        elif event.creates or (event.call.startswith("mkdir") and not path.exists()):
            self.changes.append(Change(event, None))
        elif event.call in NAMES:
            gone = event.other if event.call.startswith("rename") else path
            exchanges = bool(event.other and event.call == "renameat2" and event.other.exists())
            there = gone is not None and os.path.lexists(gone) and not exchanges
            self.changes.append(Change(event, self._copy(gone) if there and gone else None, exchanges))
            if there and gone and gone.is_file() and gone.stat().st_nlink == 1:
                # Its number may be another file's soon.
                self.dirty.discard(number := gone.stat().st_ino)
                self.synced.pop(number, None)

    def _copy(self, path: Path) -> Path:
        copy = self.shadow / str(len(list(self.shadow.iterdir())))
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, copy, symlinks=True)
        else:
            shutil.copy2(path, copy, follow_symlinks=False)
        return copy

    def cut(self, folder: Path, draw: random.Random) -> str:
        """Makes of a folder what a power cut may leave of it; says what that is."""
        undone = self.changes[draw.randint(0, len(self.changes)) :]
        torn = [self._tear(path, draw) for path in sorted(folder.rglob("*"))]
        for change in reversed(undone):
            _undo(change)
        return f"{len(undone)} names undone; {', '.join(one for one in torn if one) or 'no file torn'}"

    def _tear(self, path: Path, draw: random.Random) -> str:
        if path.is_symlink() or not path.is_file() or path.stat().st_ino not in self.dirty:
            return ""
        how = draw.choice(["whole", "as synced", "empty", "cut", "zeros"])
        content, synced = path.read_bytes(), self.synced.get(path.stat().st_ino)
        if how == "whole" or (how == "as synced" and synced is None) or not content:
            return ""
        place = draw.randrange(len(content))
        with path.open("r+b") as file:
            if how == "as synced" and synced is not None:
                file.write(synced.read_bytes())
                file.truncate()
            elif how == "zeros":
                file.seek(place - place % 4096)
                file.write(bytes(min(4096, len(content) - file.tell())))
            else:
                file.truncate(place if how == "cut" else 0)
        return f"{path.name} {how}"


def _undo(change: Change) -> None:
    """As far as it can be: what came before may be undone already."""
    event, path = change.event, change.event.path
    if event.call.startswith("rename") and event.other is not None:
        if not os.path.lexists(event.other) or not path.parent.is_dir():
            return
        if change.exchanges and os.path.lexists(path):
            aside = path.with_name(f"{path.name}.aside")
            path.rename(aside)
            event.other.rename(path)
            aside.rename(event.other)
            return
        if not os.path.lexists(path):
            event.other.rename(path)
    elif event.creates or event.call.startswith("mkdir"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif os.path.lexists(path):
            path.unlink()
        return
    gone = event.other if event.call.startswith("rename") else path
    if change.victim is not None and gone is not None and not os.path.lexists(gone) and gone.parent.is_dir():
        shutil.copytree(change.victim, gone) if change.victim.is_dir() else shutil.copy2(change.victim, gone)


class PowerCuts(Disturbed):
    """At every event; then the same command must end in the right result or in one clear line."""

    name = "power"
    share = 2.0

    def trial(self, number: int) -> Result:
        known, place = self.choose(number)
        self.begin(known.command)
        shadow = self.place.root / "shadow"
        shutil.rmtree(shadow, ignore_errors=True)
        shadow.mkdir()
        disk = Disk(shadow)

        def decide(event: Event) -> int | None:
            if event.number == place:
                return KILL
            disk.before(event)
            return None

        self.held(known.command, decide)
        left = disk.cut(self.place.work, self.draw(number))
        about = f"{known.command.name}, power cut before {known.events[place]}, {left}"
        wrong = self.half(known)
        if wrong:
            return failed(about, wrong)
        ended = forks.run(known.command.arguments, self.place.work)
        if ended.refused and "exists" not in ended.err:
            return Result(CLEAN, about)
        wrong = self.ended_without_kept(known, ended)
        return failed(about, wrong) if wrong else Result(RIGHT, about)
