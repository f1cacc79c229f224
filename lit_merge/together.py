"""One piece of work by several processes, as a command does it."""

import os
import warnings
from collections.abc import Callable, Sequence

from lit_merge.checkpoints.resuming import discard, unfinished_folder
from lit_merge.errors import MergeError
from lit_merge.processes import WORKER, Accelerator, Processes, check_devices, connect, is_started
from lit_merge.supervision import DiedError, leave_error, supervise


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
