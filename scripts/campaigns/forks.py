"""Commands and functions in forks of this process, which has imported everything."""

import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from campaigns import system_calls

SECONDS = 60.0
"""After which a process counts as one that hangs. Time in which it was ready to run and others had the cores is none of
its own."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: exit code; minus the signal's number for a death; None for one that had to be killed as it hung.
        out, err: what it wrote.
    """

    code: int | None
    out: str
    err: str

    @property
    def refused(self) -> bool:
        """Whether it ended as a command does that a user can mend: one line, exit code 2."""
        lines = [line for line in self.err.splitlines() if line.startswith("lit_merge: error: ")]
        return self.code == 2 and len(lines) == 1 and "Traceback" not in self.err and not self.tail

    @property
    def tail(self) -> str:
        """What follows the line of the error, where there should be nothing."""
        return self.err.partition("lit_merge: error: ")[2].rstrip("\n").partition("\n")[2]

    def __str__(self) -> str:
        last = [line for line in self.err.splitlines() if line.strip()][-1:] or ["nothing on standard error"]
        return f"exit {self.code}: {last[0][:300]}"


class Process:
    """A fork that runs a function. It leads a process group of its own.

    Args:
        work: its result is the exit code, or None for 0.
        folder: where it runs.
        user: a user's number that it takes on, where this process may do that.
        held: `changes` or `all`: which system calls wait for `listener`; None for none.

    Attributes:
        listener: see `system_calls.receive`.
    """

    def __init__(
        self, work: Callable[[], object], folder: str | Path = ".", user: int | None = None, held: str | None = None
    ) -> None:
        self._told = [os.memfd_create(name) for name in ("out", "err")]
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(work, folder, user, held, theirs)
        theirs.close()
        self._died = os.pidfd_open(self.pid)
        self.listener: int | None = None
        if held is not None:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            if not descriptors:
                raise OSError(f"the kernel holds no system calls: {self.end()}")
            self.listener = descriptors[0]
        ours.close()

    def _run(
        self, work: Callable[[], object], folder: str | Path, user: int | None, held: str | None, ours: socket.socket
    ) -> None:
        code = 1
        try:
            os.setsid()
            for place, descriptor in enumerate(self._told, 1):
                os.dup2(descriptor, place)
            # Whatever this process has made of them, as a test's capture.
            sys.stdout, sys.stderr = (
                os.fdopen(place, "w", closefd=False, errors="backslashreplace") for place in (1, 2)
            )
            os.chdir(folder)
            if user is not None and not os.getuid():
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            if held is not None:
                listener = system_calls.hold(reads=held == "all")
                socket.send_fds(ours, [b"."], [listener])
                os.close(listener)
            ours.close()
            code = int(work() or 0)  # type: ignore[call-overload]
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def next_call(self, seconds: float | None = None) -> bool:
        """Waits until a call is held; False where the process has ended, or does nothing for so long."""
        assert self.listener is not None
        return bool(self._wait(seconds, self.listener).get(self.listener, 0) & select.POLLIN)

    def _wait(self, seconds: float | None, *descriptors: int) -> dict[int, int]:
        """Waits until this process has ended, or a descriptor has something; nothing where it took so long."""
        ready, left = select.poll(), SECONDS if seconds is None else seconds
        for descriptor in (self._died, *descriptors):
            ready.register(descriptor, select.POLLIN)
        found: dict[int, int] = {}
        held_up: dict[str, float] = {}
        while left > 0 and not (found := dict(ready.poll(1000))):
            before, held_up = held_up, self._held_up()
            others = max((value - before.get(thread, 0.0) for thread, value in held_up.items()), default=0.0)
            left -= max(0.0, 1.0 - others)
        return found

    def _held_up(self) -> dict[str, float]:
        """Thread of this process, or of one that it started → seconds in which it was ready to run and did not; nothing
        where the kernel does not count them."""
        found = {}
        for own in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.getsid(int(own.name)) != self.pid:
                    continue
                for thread in own.glob("task/*"):
                    found[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
        return found

    def kill(self) -> None:
        """Kills it and those that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self.pid, signal.SIGKILL)

    def end(self, seconds: float | None = None) -> Ended:
        """Waits for its end, and ends what it left running."""
        if hung := not self._wait(seconds):
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        said = []
        for descriptor in self._told:
            said.append(os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace"))
        for descriptor in [*self._told, self._died, *([] if self.listener is None else [self.listener])]:
            os.close(descriptor)
        return Ended(None if hung else os.waitstatus_to_exitcode(status), *said)


def run(arguments: Sequence[str], folder: str | Path, user: int | None = None, seconds: float | None = None) -> Ended:
    """A command of the package."""
    return Process(command(arguments), folder, user).end(seconds)


def command(arguments: Sequence[str]) -> Callable[[], object]:
    def work() -> object:
        from lit_merge.cli.main import main

        return main(arguments)

    return work


def can_watch() -> bool:
    """Whether this system has descriptors of processes."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def imported(work: Callable[[], object], folder: str | Path) -> list[str]:
    """Modules that a function imports: imported here beforehand, no fork need do it again."""
    known = set(sys.modules)

    def said() -> None:
        try:
            work()
        finally:
            print("\0".join(["", *(name for name in sys.modules if name not in known)]), end="")

    return Process(said, folder).end(300).out.split("\0")[1:]
