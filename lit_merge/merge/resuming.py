"""Merges and banks that are written weight by weight and gone on with after a kill."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.outputs import check_output, replacing
from lit_merge.checkpoints.unfinished import FAILED, UnfinishedOutput
from lit_merge.console import say
from lit_merge.errors import MergeError
from lit_merge.merge.journal import FINISHED, Journal
from lit_merge.merge.processes import ALONE, Processes


@dataclass(frozen=True)
class UnfinishedMerge:
    """A merge or bank that is being written.

    Attributes:
        path: where it is until it is whole: in the folder of an `UnfinishedOutput`.
        journal: writes files of that folder, `path` among them.
        processes: which write together.
    """

    path: Path
    journal: Journal
    processes: Processes

    def share(self, costs: Mapping[str, float]) -> list[str]:
        """What this process is to do of these weights, which cost so much each; says how many of them are finished."""
        finished = self.journal.finished
        if finished:
            say(f"going on: {len(finished)} of {len(costs)} weights are finished ({self.path.parent})")
        return self.processes.share({name: cost for name, cost in costs.items() if name not in finished})


@contextmanager
def resuming(
    output: str | os.PathLike[str],
    plan: object,
    create: Callable[[Path], None] | None = None,
    overwrite: bool = False,
    processes: Processes = ALONE,
    kind: Kind | None = None,
) -> Iterator[UnfinishedMerge]:
    """Yields what is unfinished of an output, and puts it in its place when the block succeeds in every process.

    A block that fails leaves nothing, and what stood at `output` stands there still. A kill, an interrupt and the end
    of another process leave the folder: the next one of the same plan goes on with it, one of another starts afresh.

    Args:
        output: a file or a folder.
        plan: all that two writers must share to write the same bytes, as JSON takes it; None for what nobody could
            recognise, as weights in memory: a kill leaves nothing to go on with.
        create: makes `path`, or mends it where it is there already; by default it is the block that makes it.
        overwrite: replace what stands there.
        processes: which write it together; all call this.
        kind: nothing else is replaced.

    Raises:
        MergeError: an output that exists or cannot be written; another command writes it.
    """
    target = check_output(output, overwrite, kind)
    if not processes.first:
        processes.wait()  # until the first one has the folder
    with UnfinishedOutput(output, processes.first, processes.count > 1) as unfinished:
        path = unfinished.folder / target.name
        try:
            if processes.first:
                _prepare(unfinished, path, plan, create)
                processes.wait()
            journal = Journal(unfinished.folder, processes.rank)
            try:
                yield UnfinishedMerge(path, journal, processes)
            finally:
                journal.close()
            processes.wait()
            if processes.first:
                with replacing(output, overwrite, kind) as new:
                    os.replace(path, new)
                    unfinished.placing(new)
        except MergeError as error:
            # Of a file inside a folder that is being written: its place is where the folder will stand.
            message = str(error).replace(str(path), str(target))
            raise MergeError(message, task=error.task, weight=error.weight) from error
        except OSError as error:
            reason = error.strerror or error
            raise MergeError(f"{target} could not be written: {reason}; nothing was changed") from error


def _prepare(unfinished: UnfinishedOutput, path: Path, plan: object, create: Callable[[Path], None] | None) -> None:
    text = json.dumps(plan, sort_keys=True, default=str)
    digest = {"merge": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}
    failed, begun = ((unfinished.folder / name).exists() for name in (FAILED, FINISHED))
    if plan is None or failed or not _goes_on(unfinished, digest):
        if begun:
            say(f"starting afresh: {unfinished.folder} is of another merge, or of experts that have changed")
        unfinished.begin(digest)
    if create is not None:
        create(path)
    Journal.start(unfinished.folder)


def _goes_on(unfinished: UnfinishedOutput, plan: Mapping[str, str]) -> bool:
    try:
        return unfinished.goes_on(plan, overwrite=True)
    except MergeError:  # of a plan that a machine without power has cut short
        return False
