"""Commands that are killed at a file event and given again, in forks of a process that has imported everything."""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from campaigns.file_events import KILL, Event, run_held
from campaigns.forks import command, run
from campaigns.trees import difference, tree

UNKNOWN = 3
"""Exit code where the kernel does not hold system calls."""


def kill_and_repeat(arguments: Sequence[str], moments: Sequence[str], folder: str, answer: str, before: str) -> None:
    """Runs a command undisturbed, and for every moment anew with a kill there, and then to its end.

    Args:
        arguments: of the command, which runs in a folder that is empty, or a copy of `before`.
        moments: regular expressions: the kill comes before the first event that follows one that matches.
        folder: where it runs.
        answer: a file that gets what is wrong, as a list in JSON.
        before: a folder, or nothing.
    """
    place, wrong = Path(folder), []

    def begin() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(before, place) if before else place.mkdir()

    begin()
    events: list[Event] = []
    try:
        ended = run_held(command(arguments), place, events.append)
    except OSError:
        raise SystemExit(UNKNOWN) from None
    wanted = tree(place)
    if ended.code:
        wrong.append(f"undisturbed: {ended}")
    for moment in moments:
        found = [event.number for event in events if re.search(moment, str(event))]
        if not found:
            wrong.append(f"no event {moment} among {[str(event) for event in events]}")
            continue
        begin()
        last = found[0] + 1
        killed = run_held(command(arguments), place, lambda event, last=last: KILL if event.number == last else None)
        again = run(arguments, place)
        if killed.code != -9 or again.code or difference(tree(place), wanted):
            wrong.append(f"killed after {moment}: {killed}; then {again}: {difference(tree(place), wanted)}")
    Path(answer).write_text(json.dumps(wrong))
