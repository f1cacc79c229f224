"""Several processes of one command. They end together: with the whole output, or with one line that says why not."""

import logging
import os
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import active_children, get_all_start_methods, parent_process, set_forkserver_preload
from pathlib import Path

from torch.multiprocessing import ProcessContext, ProcessRaisedException, start_processes
from torch.multiprocessing.spawn import ProcessException

from lit_merge.checkpoints.unfinished import discard, unfinished_folder
from lit_merge.errors import DiedError, MergeError
from lit_merge.merge.processes import LOST, WORKER, Accelerator, Processes, check_devices, connect, is_started

# A fork of a process that has imported everything starts at once, and is safe before threads and CUDA start in it.
START = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
# Seconds for the other processes to end by themselves once one has failed.
GRACE = 1.0


@contextmanager
def working_together(
    devices: int, accelerator: Accelerator, output: str, arguments: Sequence[str]
) -> Iterator[Processes | None]:
    """Yields which one this process is of those that work on an output together; or starts them, waits for them, and
    then yields None: the work is done.

    Args:
        devices: number of processes.
        accelerator: `cpu`, or `gpu` for a GPU for each.
        output: what they write, by `resuming`.
        arguments: of the command line that leads to the same work, the verb first.

    Raises:
        MergeError: what a process raised, or how it died; devices that are not there.
    """
    check_devices(devices, accelerator)
    if not is_started() and devices > 1:
        _start_all(devices, output, arguments)
        yield None
        return
    processes = connect(devices, accelerator)
    if not processes.first:
        # Each process would show the same warnings.
        warnings.simplefilter("ignore")
    try:
        yield processes
    except MergeError as error:
        if WORKER not in os.environ:
            raise
        # A supervised process leaves its error in a file and ends.
        Path(os.environ[WORKER], f"{processes.rank}.error").write_bytes(os.fsencode(str(error)))
        raise SystemExit(2) from error


def reports(processes: Processes | None) -> bool:
    """Whether this process says that the work is done: the first, or the one that has started all."""
    return processes is None or (processes.first and WORKER not in os.environ)


def _start_all(devices: int, output: str, arguments: Sequence[str]) -> None:
    set_forkserver_preload([f"lit_merge.cli.{arguments[0]}"])
    try:
        _supervise(arguments, devices)
    except DiedError as error:
        folder = unfinished_folder(output)
        resumable = f"; the same command goes on from what is finished ({folder})" if folder.exists() else ""
        tail = f": {output} was not written{resumable}"
        raise DiedError(error.rank, error.count, error.code, tail) from error
    except MergeError:
        discard(output)
        raise


def _supervise(arguments: Sequence[str], count: int) -> None:
    """Runs `python -m lit_merge` with these arguments in several processes, until all have succeeded or one has failed.

    Raises:
        DiedError: a process was killed, or ended by an error that is no `MergeError`.
        MergeError: the first that a process raised.
    """
    # torch names each process that it ends; what the user needs is one line about the process that failed.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        environment = {WORKER: folder, "WORLD_SIZE": str(count)}
        try:
            context = start_processes(_run, (arguments, environment), count, join=False, start_method=START)
            try:
                while not context.join(grace_period=GRACE):
                    pass
            except ProcessException as error:
                raise _failure(error, context, Path(folder)) from None
        finally:
            # After an interrupt they still run.
            for child in active_children():
                child.kill()
                child.join()


def _run(rank: int, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """One of the processes: runs the command line again, in which `working_together` finds out what this process is."""
    # A keyboard's interrupt reaches all processes: the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(environment[WORKER],), daemon=True).start()
    os.environ |= {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    if rank:
        with Path(environment[WORKER], f"{rank}.output").open("wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
    sys.argv[1:] = arguments
    runpy.run_module("lit_merge", run_name="__main__")


def _end_with_parent(folder: str) -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    # Where it was killed, nobody else removes this.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(LOST)


def _failure(error: ProcessException, context: ProcessContext, folder: Path) -> MergeError:
    """Why processes failed that have all ended: an error that one has left, or how one died."""
    for left in sorted(folder.glob("*.error")):
        return MergeError(os.fsdecode(left.read_bytes()))
    codes = [process.exitcode for process in context.processes]
    # A process that has lost another, or was ended because of it, is not the cause.
    ranks = [rank for rank, code in enumerate(codes) if code]
    rank = min(ranks, key=lambda rank: (codes[rank] == LOST, rank != error.error_index, codes[rank] == -signal.SIGTERM))
    code, output = codes[rank], folder / f"{rank}.output"
    if isinstance(error, ProcessRaisedException):
        sys.stderr.write(error.msg)
    elif code > 0 and output.exists():
        sys.stderr.write(output.read_text(encoding="utf-8", errors="replace"))
    return DiedError(rank, len(codes), code)
