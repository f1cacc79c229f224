"""Commands in real processes, forked from one server that has imported everything: they start at once."""

import os
import resource
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path

from lit_merge.cli.main import main

PROCESSES = get_context("forkserver")
# What commands load only once they run.
IMPORTS = ["lit_merge.cli.lightning_cli", "tests.forked_commands"]


class Forks:
    """Runs commands in processes, whose number a command may choose itself (`merge --devices 2`).

    Attributes:
        told: a file with the output of the processes of the last `run`, and of those that tests start without it.
    """

    def __init__(self, told: Path) -> None:
        self.told = told
        PROCESSES.set_forkserver_preload(IMPORTS)
        kept = [os.dup(1), os.dup(2)]
        with told.open("ab") as output:
            for place in (1, 2):
                os.dup2(output.fileno(), place)
        forkserver.ensure_running()
        for place, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, place)
            os.close(descriptor)

    def run(
        self,
        *arguments: str,
        folder: str | Path = ".",
        environments: Sequence[Mapping[str, str]] = ({},),
        kill_after: float | None = None,
        largest_file: int | None = None,
    ) -> list[int]:
        """Exit codes of the command, run once for every environment at a time; −9 of a process that was killed."""
        self.told.write_text("")
        told = arguments, str(folder), largest_file
        children = [PROCESSES.Process(target=run_command, args=(*told, each)) for each in environments]
        for child in children:
            child.start()
        if kill_after is not None:
            time.sleep(kill_after)
            for child in children:
                child.kill()
        for child in children:
            child.join()
        return [child.exitcode for child in children]


def as_torchrun(processes: int) -> list[dict[str, str]]:
    """The environments of the processes that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common = {"TORCHELASTIC_RUN_ID": "one", "GROUP_RANK": "0"} | address | size
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def run_command(
    arguments: Sequence[str], folder: str, largest_file: int | None, environment: Mapping[str, str]
) -> None:
    """What a process of `Forks` does."""
    os.chdir(folder)
    os.environ |= environment
    if largest_file is not None:
        # A write beyond it fails as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    raise SystemExit(main(arguments))
