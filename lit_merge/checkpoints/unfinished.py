"""Outputs that are not finished: folders from which the same command goes on after a kill."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

from lit_merge.checkpoints.json_text import parse_sealed, sealed
from lit_merge.checkpoints.locations import destination
from lit_merge.checkpoints.locks import (
    UNFINISHED,
    clear_workplaces,
    lock,
    make_folders,
    note_placed,
    remove_empty,
    remove_whole,
    unlock,
)
from lit_merge.checkpoints.outputs import write_text
from lit_merge.checkpoints.own import check_all_own, check_own, own
from lit_merge.errors import MergeError

FAILED = "failed"
Own = TypeVar("Own", bound="UnfinishedOutput")


def unfinished_folder(output: str | os.PathLike[str]) -> Path:
    """Where an output is until it is whole."""
    target = destination(output)
    return target.parent / f".{target.name}{UNFINISHED}"


def discard(output: str | os.PathLike[str]) -> None:
    """Removes what is unfinished of an output that failed in one of several processes, once all have ended."""
    folder = unfinished_folder(output)
    if (folder / FAILED).exists():
        remove_whole(folder, destination(output))


class UnfinishedOutput:
    """The folder `.NAME.unfinished` in which one command at a time makes an output, and its plan: what makes two
    commands the same.

    As a context it is removed after success and after an error. A kill and an interrupt leave it: the same command
    goes on with it, another one empties it first.

    Args:
        output: a file or a folder.
        first: off in all processes of a command but one: they take no lock and remove nothing.
        shared: whether several processes write in it, of which an error of one must not take it from the others.

    Raises:
        MergeError: another command is at work on the output; the folder cannot be made, or is not this user's.
    """

    plan_file: ClassVar[str] = "plan.json"
    kind: ClassVar[str] = "an unfinished output"
    other: ClassVar[str] = "another place"

    def __init__(self, output: str | os.PathLike[str], first: bool = True, shared: bool = False) -> None:
        self.output, self.first, self.shared = destination(output), first, shared
        self.folder = unfinished_folder(output)
        self._made: list[Path] = []
        self._lock = self._take() if first else None

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.shared and isinstance(error, Exception):
            # Others may be writing still: what supervises them clears up.
            (self.folder / FAILED).touch()
        elif self.first and not self.outlives(error):
            remove_whole(self.folder, self.output)
        self.release()

    def outlives(self, error: BaseException | None) -> bool:
        """Whether the folder stays when the work ends with this error, or with None."""
        return error is not None and not isinstance(error, Exception)

    def release(self) -> None:
        """Gives the lock back, and removes folders that were made for nothing."""
        if self.first:
            remove_empty([self.folder, *self._made])
        unlock(self._lock)
        self._lock = None

    def placing(self, new: Path) -> None:
        """Says that this whole output is about to get its place: whoever finds it there needs this folder no more."""
        note_placed(self.folder, new)

    def goes_on(self, plan: Mapping[str, Any], overwrite: bool = False) -> bool:
        """Whether the folder holds what a command of this plan has left.

        Raises:
            MergeError: it holds what another command has left, and `overwrite` is off; the plan is damaged.
        """
        found = self.read(self.plan_file)
        if found is None:
            return False
        differs = differing(plan, found)
        if differs and not overwrite:
            raise self.of_another(self.folder, differs)
        return not differs

    def of_another(self, folder: Path, differs: list[str]) -> MergeError:
        """What is said of a folder whose plan differs."""
        return MergeError(
            f"{folder} holds {self.kind} with other {', '.join(differs)}: pass --overwrite to start afresh, or choose "
            f"{self.other}"
        )

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Starts afresh: writes the plan into the empty folder."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self.write(self.plan_file, json.loads(json.dumps(plan, default=str)))

    def read(self, name: str) -> dict[str, Any] | None:
        """What `write` wrote to a file of the folder; None where there is none.

        Raises:
            MergeError: it holds something else, or was changed.
        """
        try:
            with open(self.folder / name, "rb", opener=own) as file:
                return parse_sealed(file.read())
        except FileNotFoundError:
            return None
        except MergeError:
            raise
        except (OSError, ValueError) as error:
            raise self.damaged(name) from error

    def write(self, name: str, about: Mapping[str, Any]) -> None:
        """Writes a JSON file of the folder, with a digest of itself."""
        write_text(self.folder / name, sealed(about, indent=1) + "\n", overwrite=True)

    def damaged(self, name: str) -> MergeError:
        return MergeError(f"{self.folder / name} is damaged: remove {self.folder} to start afresh")

    def _take(self) -> int | None:
        while True:
            try:
                made = make_folders(self.folder)
                check_own(self.folder)
                taken = lock(self.folder)
                self._made += made
            except BlockingIOError as error:
                raise MergeError(
                    f"another process is at work on {self.output}: wait, or choose {self.other}"
                ) from error
            except FileNotFoundError:
                continue  # that process has just finished
            except OSError as error:
                raise MergeError(f"{self.folder} cannot be written: {error.strerror}") from error
            try:
                check_all_own(self.folder)
                clear_workplaces(self.folder)
            except BaseException:
                unlock(taken)
                raise
            return taken


def differing(plan: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """In what a plan differs from one that was read."""
    now = json.loads(json.dumps(plan, default=str))
    # What is off may be missing: earlier versions did not know it.
    return [name for name in now | found if (now.get(name) or None) != (found.get(name) or None)]
