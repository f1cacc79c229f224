"""The processes of one fit: when one of them dies, the others end within seconds, with one line that names it."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_merge.errors import DiedError, MergeError
from lit_merge.merge.processes import LOST

# Set by the first process for those that Lightning starts from it: its number in the system.
FIRST = "LIT_MERGE_FIRST_PROCESS"
# Seconds between two looks, and those that a process has to end by itself.
EVERY, GRACE = 0.2, 3.0


class Fellows(Callback):
    """Knows the other processes of a trainer, and which of them has died.

    Args:
        trainer: of several processes.
        tail: what follows in the line that names a dead process.
    """

    def __init__(self, trainer: Trainer, tail: Callable[[], str] = lambda: "") -> None:
        self.trainer, self.tail = trainer, tail
        self.rank, self.count = trainer.global_rank, trainer.world_size
        self._parent = int(os.environ.get(FIRST, os.getppid()))
        self._first_is_parent = FIRST in os.environ and trainer.local_rank > 0
        self._here: dict[int, int] = {}
        self._over = threading.Event()
        if trainer.local_rank == 0:
            os.environ[FIRST] = str(os.getpid())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All processes meet here: each learns which others run on its machine."""
        import torch

        if not self._here and torch.distributed.is_initialized():
            places: list[Any] = [None] * self.count
            torch.distributed.all_gather_object(places, (socket.gethostname(), os.getpid()))
            mine = {rank: pid for rank, (host, pid) in enumerate(places) if host == socket.gethostname()}
            # Containers may be called alike and number their processes each for itself.
            self._here = {rank: pid for rank, pid in mine.items() if _lives(pid)}

    @property
    def _children(self) -> dict[int, Any]:
        """Rank → process, of those that this one has started."""
        started = getattr(self.trainer.strategy.launcher, "procs", None) or ()
        return {self.rank + i: process for i, process in enumerate(started, 1)}

    def died(self, asked: bool = False) -> DiedError | None:
        """The process that has died, where there is one.

        Args:
            asked: whether this process has lost the others, so that any that is not there any more is the cause.
        """
        codes = {rank: child.poll() for rank, child in self._children.items()}
        failed = [rank for rank, code in codes.items() if code]
        if failed:
            # One that has lost another is not the cause.
            rank = min(failed, key=lambda rank: codes[rank] == LOST)
            return self._error(rank, codes[rank])
        if self._first_is_parent and os.getppid() != self._parent:
            return self._error(self.rank - self.trainer.local_rank)
        if self._first_is_parent or not asked:
            return None
        gone = [rank for rank, pid in self._here.items() if rank not in codes and not _lives(pid)]
        return self._error(gone[0]) if gone else None

    def _error(self, rank: int, code: int | None = None) -> DiedError:
        return DiedError(rank, self.count, code, self.tail())

    def says(self, error: DiedError) -> bool:
        """Whether it is this process that says so: the one that knows best, or the first of those that are left. One
        that ended with code 2 has said why itself."""
        if error.code is not None:
            return error.code != 2
        return self.rank == min((rank for rank in self._here if rank != error.rank), default=error.rank + 1)

    def watch(self) -> None:
        """Ends this process where another has died and it does not notice by itself."""
        while not self._over.wait(EVERY):
            _silence_lightning()
            if (error := self.died()) is None:
                continue
            if self._over.wait(GRACE):
                return
            self.end_others()
            if self.says(error):
                sys.stderr.write(f"lit_merge: error: {error}\n")
                sys.stderr.flush()
            os._exit(2 if self.says(error) or error.code == 2 else LOST)

    def wait_for_death(self) -> DiedError | None:
        """Asks until the system knows of a death, or none has come."""
        ends = time.monotonic() + GRACE
        while (error := self.died(asked=True)) is None and time.monotonic() < ends:
            time.sleep(EVERY / 4)
        return error

    def end_others(self) -> None:
        """Ends those that this process has started."""
        for child in self._children.values():
            child.kill()

    def leave(self) -> None:
        self._over.set()
        if self.trainer.local_rank == 0:
            os.environ.pop(FIRST, None)


@contextmanager
def ending_together(trainer: Any, tail: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Around Lightning's verbs: a process that dies ends those of the same trainer.

    Args:
        trainer: all of whose processes enter this.
        tail: what follows in the line that names a dead process.

    Raises:
        DiedError: another process has died.
        SystemExit: it has, and another one says so.
    """
    if trainer.world_size == 1:
        yield
        return
    fellows = Fellows(trainer, tail)
    trainer.callbacks.insert(0, fellows)
    threading.Thread(target=fellows.watch, daemon=True, name="fellows").start()
    try:
        yield
    except RuntimeError as error:
        # Of gloo or NCCL, which has lost another process; or a bug.
        if (died := fellows.wait_for_death()) is None:
            raise
        if fellows.says(died):
            raise died from error
        raise SystemExit(died.code or LOST) from error
    except MergeError:
        if trainer.local_rank > 0:
            # The first process, which sees most of what others see, says it for all, and ends them.
            time.sleep(GRACE / 3)
        raise
    finally:
        fellows.leave()
        if sys.exc_info()[0] is not None:
            fellows.end_others()
        trainer.callbacks.remove(fellows)


def _silence_lightning() -> None:
    """Lightning's own observer kills this process without a word."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer" and hasattr(thread, "_run"):
            thread._run = lambda: True


def _lives(pid: int) -> bool:
    """Whether a process runs still; one that has ended and was not asked after does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return not Path("/proc/self/stat").exists()
