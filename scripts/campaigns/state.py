"""State that goes on after a kill, changed by hand or a bad disk: plans, journals, checkpoints, results of a sweep."""

import random
from pathlib import Path

from campaigns import forks, mutators
from campaigns.file_events import KILL
from campaigns.kills import Disturbed
from campaigns.trial import CLEAN, RIGHT, Place, Result, failed

BY_SUFFIX = {
    ".json": mutators.mutate_json,
    ".jsonl": mutators.mutate_lines,
    ".csv": mutators.mutate_lines,
    ".safetensors": mutators.mutate_safetensors,
    ".ckpt": mutators.mutate_torch,
}
GOING_ON = ("merge-file", "merge-shards", "export-built", "export-kept", "fit", "sweep", "merge-file-over")


class State(Disturbed):
    """After a kill one file of what is unfinished is changed; the same command ends as undisturbed, or is refused."""

    name = "state"
    share = 2.0

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(place, seed)
        self.commands = [one for one in self.commands if one.name in GOING_ON]

    def trial(self, number: int) -> Result:
        known, place = self.choose(number)
        draw = self.draw(number)
        self.begin(known.command)
        self.held(known.command, lambda event: KILL if event.number == place else None)
        files = [path for path in self.place.work.rglob("*") if path.is_file() and self._unfinished(path)]
        about = f"{known.command.name}, killed before {known.events[place]}"
        finds = self.ended
        if files:
            about += f", {change(draw, path := draw.choice(sorted(files)))}"
            finds = self.ended_without_kept if self.place.work / "kept" in path.parents else finds
        ended = forks.run(known.command.arguments, self.place.work)
        if ended.refused and "exists:" not in ended.err:
            return Result(CLEAN, about)
        wrong = finds(known, ended)
        return failed(about, wrong) if wrong else Result(RIGHT, about)

    def _unfinished(self, path: Path) -> bool:
        top = path.relative_to(self.place.work).parts[0]
        return top.startswith(".") or top == "kept"


def change(draw: random.Random, path: Path) -> str:
    """Changes a file by what it is, or its bytes where it is not whole."""
    try:
        return BY_SUFFIX.get(path.suffix, mutators.mutate_bytes)(draw, path)
    except (ValueError, LookupError, OSError):
        return mutators.mutate_bytes(draw, path)
