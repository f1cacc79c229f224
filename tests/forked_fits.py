"""`python -m lit_merge` commands in forks of one process that has imported everything: a start costs nothing.

As a script it reads lines of JSON, {arguments, folder, environments, kill_after, largest_file}: a fork for every
environment, all killed after so many seconds unless that is null. It answers every line with the list of exit codes.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class Forks:
    """Runs commands; what the last one told is in the file `told`. To be closed."""

    def __init__(self, told: Path) -> None:
        self.told = told
        with told.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

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
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"arguments": arguments, "folder": str(folder), "environments": environments}
        asked |= {"kill_after": kill_after, "largest_file": largest_file}
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def as_torchrun(processes: int) -> list[dict[str, str]]:
    """What torchrun tells the processes that it starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common = {"TORCHELASTIC_RUN_ID": "one", "GROUP_RANK": "0"} | address | size
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def fork(arguments: list[str], folder: str, environment: dict[str, str], largest_file: int | None) -> int:
    """The number of a new process that runs the command."""
    from lit_merge.cli.main import main

    if child := os.fork():
        return child
    code = 1
    try:
        os.dup2(2, 1)  # standard output is for the answers
        os.chdir(folder)
        os.environ |= environment
        if largest_file is not None:
            # A write beyond it fails as on a full disk.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        code = main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        told = asked["arguments"], asked["folder"]
        children = [fork(*told, each, asked["largest_file"]) for each in asked["environments"]]
        if asked["kill_after"] is not None:
            time.sleep(asked["kill_after"])
            for child in children:
                os.kill(child, signal.SIGKILL)  # not waited for yet: no other process can have its number
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    serve()
