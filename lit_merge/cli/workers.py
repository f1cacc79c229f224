"""Several processes of one command. They end together: with the whole output, or with one line that says why not."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from lit_merge.checkpoints.unfinished import discard, unfinished_folder
from lit_merge.errors import MergeError
from lit_merge.merge.processes import LOST, WORKER, Accelerator, Processes, check_devices, connect, is_started

# Seconds between looks at the processes; and for the others to end by themselves once one has failed, so that it is
# known which one was the cause.
LOOK, GRACE = 0.05, 1.0


class DiedError(MergeError):
    """A process ended without saying why."""


def supervise(arguments: Sequence[str], count: int) -> None:
    """Runs `python -m lit_merge` with these arguments in so many processes, and waits for all of them.

    When one fails all others are ended; when this one dies they end themselves. Standard error of the first is this
    one's; what others have to say is shown only where they die without an error of their own.

    Raises:
        DiedError: one was killed, or ended by an error that is no `MergeError`.
        MergeError: what a process raised, once.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        said = [None, *(stack.enter_context((folder / f"{rank}.said").open("w+b")) for rank in range(1, count))]
        environment = os.environ | _environment(count, folder)
        command = [sys.executable, "-m", "lit_merge", *arguments]
        children = [_start(command, environment, rank, said[rank]) for rank in range(count)]
        try:
            while any(child.poll() is None for child in children):
                if any(child.returncode for child in children):
                    _wait(children, GRACE)
                    break
                time.sleep(LOOK)
            codes = [child.poll() for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
                assert child.stdin is not None
                child.stdin.close()
        _judge(codes, folder)


def _environment(count: int, folder: Path) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), WORKER: str(folder)}


def _start(
    command: Sequence[str], environment: dict[str, str], rank: int, said: IO[bytes] | None
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        env=environment | {"LOCAL_RANK": str(rank), "NODE_RANK": "0"},
        stdin=subprocess.PIPE,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stderr=said,
        # Of a keyboard's interrupt only this process is told, which ends the others.
        start_new_session=True,
    )


def _wait(children: "Sequence[subprocess.Popen[bytes]]", seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and any(child.poll() is None for child in children):
        time.sleep(LOOK)


def _judge(codes: Sequence[int | None], folder: Path) -> None:
    """Raises what went wrong, if anything did. Those that ran until they were ended have no code."""
    for rank in range(len(codes)):
        if (error := folder / f"{rank}.error").exists():
            raise MergeError(error.read_text(encoding="utf-8"))
    # Those that the end of another took along are not the cause.
    for rank, code in sorted(enumerate(codes), key=lambda one: one[1] == LOST):
        if not code:
            continue
        if rank and code > 0:
            sys.stderr.write((folder / f"{rank}.said").read_text(encoding="utf-8", errors="replace"))
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise DiedError(f"process {rank + 1} of {len(codes)} {how}")


def leave_error(error: MergeError) -> None:
    """Tells the supervisor of this process why it ends."""
    place = Path(os.environ[WORKER]) / f"{os.environ['LOCAL_RANK']}.error"
    beside = place.with_suffix(".writing")
    beside.write_text(str(error), encoding="utf-8")
    beside.replace(place)


def work_together(
    work: Callable[[Processes], None], devices: int, accelerator: Accelerator, output: str, arguments: Sequence[str]
) -> bool:
    """Does the work in this process, or starts several that do it together and waits for them.

    Args:
        work: what every process does, given which one it is.
        devices: number of processes.
        accelerator: `cpu`, or `gpu` for a GPU for each.
        output: what they write, by `resuming`.
        arguments: of the command line that leads to the same work.

    Returns:
        Whether this process has to say that the work is done.

    Raises:
        MergeError: what a process raised, or how it died; devices that are not there.
    """
    check_devices(devices, accelerator)
    if is_started() or devices == 1:
        processes = connect(devices, accelerator)
        _work(work, processes)
        return processes.first and WORKER not in os.environ
    try:
        supervise(arguments, devices)
    except DiedError as error:
        folder = unfinished_folder(output)
        told = f"; the same command goes on from what is finished ({folder})" if folder.exists() else ""
        raise MergeError(f"{error}: {output} was not written{told}") from error
    except MergeError:
        discard(output)
        raise
    return True


def _work(work: Callable[[Processes], None], processes: Processes) -> None:
    if not processes.first:
        # All would warn of the same.
        warnings.simplefilter("ignore")
    try:
        work(processes)
    except MergeError as error:
        if WORKER not in os.environ:
            raise
        leave_error(error)
        raise SystemExit(2) from error
