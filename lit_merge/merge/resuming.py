"""Outputs that are written weight by weight and gone on with after a kill."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.locks import lock, unlock
from lit_merge.checkpoints.outputs import check_output, replacing
from lit_merge.console import say
from lit_merge.errors import MergeError
from lit_merge.merge.journal import FINISHED, Journal
from lit_merge.merge.processes import ALONE, Processes

PLAN, FAILED = "plan.txt", "failed"


@dataclass(frozen=True)
class Unfinished:
    """An output that is being written, in a hidden folder beside its place.

    Attributes:
        path: what will stand in that place, in the folder.
        journal: writes files of the folder, `path` among them.
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


def unfinished_folder(output: str | os.PathLike[str]) -> Path:
    """Where an output is until it is whole."""
    target = destination(output)
    return target.parent / f".{target.name}.unfinished"


@contextmanager
def resuming(
    output: str | os.PathLike[str],
    plan: object,
    create: Callable[[Path], None] | None = None,
    overwrite: bool = False,
    processes: Processes = ALONE,
) -> Iterator[Unfinished]:
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

    Raises:
        MergeError: as `replacing`; another command writes the same.
    """
    target, folder = check_output(output, overwrite), unfinished_folder(output)
    path, lease, ours = folder / target.name, None, False
    try:
        if processes.first:
            lease = _take(folder, target)
            ours = True
            _prepare(folder, path, plan, create)
        processes.wait()
        ours = True
        journal = Journal(folder, processes.rank)
        try:
            yield Unfinished(path, journal, processes)
        finally:
            journal.close()
        processes.wait()
        if processes.first:
            with replacing(output, overwrite) as new:
                os.replace(path, new)
            shutil.rmtree(folder, ignore_errors=True)
    except Exception as error:
        if ours:
            _fail(folder, processes)
        if isinstance(error, MergeError):
            # Of a file inside a folder that is being written: its place is where the folder will stand.
            told = str(error).replace(str(path), str(target))
            raise MergeError(told, task=error.task, weight=error.weight) from error
        if isinstance(error, OSError):
            told = f"{target} could not be written: {error.strerror or error}; nothing was changed"
            raise MergeError(told) from error
        raise
    finally:
        unlock(lease)


def discard(output: str | os.PathLike[str]) -> None:
    """Removes what is unfinished of an output that failed in one of several processes, once all have ended."""
    folder = unfinished_folder(output)
    if (folder / FAILED).exists():
        shutil.rmtree(folder, ignore_errors=True)


def _fail(folder: Path, processes: Processes) -> None:
    # Others may be writing still: what supervises them clears up.
    if processes.count == 1:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        (folder / FAILED).touch()


def _take(folder: Path, target: Path) -> int | None:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return lock(folder)
        except BlockingIOError as error:
            raise MergeError(f"another process is at work on {target}: wait, or choose another place") from error
        except FileNotFoundError:
            continue  # that process has just finished


def _prepare(folder: Path, path: Path, plan: object, create: Callable[[Path], None] | None) -> None:
    text = json.dumps(plan, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    known = folder / PLAN
    same = plan is not None and known.exists() and known.read_text(encoding="utf-8") == digest
    same = same and not (folder / FAILED).exists()
    if not same:
        if (folder / FINISHED).exists():
            say(f"starting afresh: {folder} is of another merge, or of experts that have changed")
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        known.write_text(digest, encoding="utf-8")
    if create is not None:
        create(path)
    Journal.start(folder)
