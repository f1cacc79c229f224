"""Commands in real processes, forked from one server that has imported everything: they start at once."""

import json
import os
import resource
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from multiprocessing import forkserver, get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_merge.cli.main import main
from tests.killed_commands import UNKNOWN, kill_and_repeat

SERVER = get_context("forkserver")
IMPORTS = ["lit_merge.cli.lightning_cli", "lit_merge.cli.lightning_verbs", "open_clip.model", "pytest"]
IMPORTS += ["transformers.modeling_utils", "matplotlib.backends.backend_agg", "tests.watched", __name__]


class Forks:
    """Starts processes, and runs commands of the package in them.

    A merge that a test runs in its own process with `--devices 2` takes its processes from the same server.

    Attributes:
        said: a file with what processes have written on standard output and standard error since the last `run`.
    """

    def __init__(self, said: Path) -> None:
        self.said = said
        SERVER.set_forkserver_preload(IMPORTS)
        with said.open("ab") as output:
            own = {place: os.dup(place) for place in (1, 2)}
            for place in own:
                os.dup2(output.fileno(), place)
            forkserver.ensure_running()
        for place, descriptor in own.items():
            os.dup2(descriptor, place)
            os.close(descriptor)

    @staticmethod
    def start(work: Callable[..., object], *arguments: object) -> Any:
        """A process that runs a function of a module; as `multiprocessing.Process`."""
        process = SERVER.Process(target=work, args=arguments)
        process.start()
        return process

    def tests(self, folder: Path) -> str:
        """What pytest says of the test files in a folder, which import from that folder."""
        self.said.write_text("")
        process = self.start(run_tests, str(folder))
        process.join()
        return self.said.read_text()

    def run(
        self,
        *arguments: str,
        folder: str | Path = ".",
        environments: Sequence[Mapping[str, str]] = ({},),
        kill_after: float | Callable[[], object] | None = None,
        largest_file: int | None = None,
        errors_only: bool = False,
    ) -> list[int]:
        """Exit codes of a command, run at once in several processes, one for every environment.

        Args:
            kill_after: seconds until all are killed, or a function that returns when it is time. Their code is −9.
            largest_file: bytes, beyond which a write fails as on a full disk.
            errors_only: whether `said` is of standard error only.
        """
        self.said.write_text("")
        options = (largest_file, errors_only)
        processes = [self.start(run_command, arguments, str(folder), each, *options) for each in environments]
        if kill_after is not None:
            kill_after() if callable(kill_after) else time.sleep(kill_after)
            for process in processes:
                process.kill()
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

    def popen(self, command: Sequence[str], **_: object) -> SimpleNamespace:
        """Runs a Python program, `[python, script, *arguments]`; as `subprocess.Popen` with text pipes."""
        (theirs_in, ours_in), (ours_out, theirs_out) = SERVER.Pipe(duplex=False), SERVER.Pipe(duplex=False)
        process = self.start(run_program, command[1:], theirs_in, theirs_out)
        theirs_in.close()
        theirs_out.close()
        stdin, stdout = (os.fdopen(os.dup(one.fileno()), mode) for one, mode in ((ours_in, "w"), (ours_out, "r")))

        def communicate() -> None:
            for one in (stdin, stdout, ours_in, ours_out):
                one.close()
            process.join()

        return SimpleNamespace(stdin=stdin, stdout=stdout, args=command, communicate=communicate)

    def kill_and_repeat(
        self, *arguments: str, moments: Sequence[str], folder: Path, before: Path | None = None
    ) -> list[str]:
        """What is wrong with a command that is killed at each of these moments; see `killed_commands`."""
        answer = folder.parent / f"{folder.name}.json"
        options = (moments, str(folder), str(answer), "" if before is None else str(before))
        process = self.start(kill_and_repeat, arguments, *options)
        process.join()
        if process.exitcode == UNKNOWN:
            pytest.skip("a kernel that does not hold system calls")
        assert process.exitcode == 0, self.said.read_text()
        return [str(one) for one in json.loads(answer.read_text())]


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Returns once the condition holds; fails where it takes longer than so many seconds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def as_torchrun(processes: int) -> list[dict[str, str]]:
    """The environments of the processes that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    size = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common = {"TORCHELASTIC_RUN_ID": "one", "GROUP_RANK": "0"} | address | size
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def leave_unpainted(replace: Callable[[object, str, Any], None]) -> None:
    """Figures are not painted, which takes longer than a fit: a picture is a file of one line, and those of a fit's log
    are empty."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from lit_merge.adaptation.callbacks import coefficient_log

    replace(Figure, "savefig", lambda figure, path, **_: Path(path).write_text("no picture\n"))
    replace(ConstrainedLayoutEngine, "execute", lambda engine, figure: None)
    replace(coefficient_log, "coefficient_figure", lambda *of: Figure())


def run_tests(folder: str) -> None:
    """What the process of `Forks.tests` does."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, folder)
    raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider"]))


def run_program(command: Sequence[str], stdin: Any, stdout: Any) -> None:
    """What the process of `Forks.popen` does."""
    for place, pipe in enumerate((stdin, stdout)):
        os.dup2(pipe.fileno(), place)
    sys.stdin, sys.stdout, sys.argv = os.fdopen(0), os.fdopen(1, "w"), [*command]
    sys.path.insert(0, str(Path(command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")


def run_command(
    arguments: Sequence[str], folder: str, environment: Mapping[str, str], largest_file: int | None, errors_only: bool
) -> None:
    """What a process of `Forks.run` does."""
    leave_unpainted(setattr)
    if errors_only:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.chdir(folder)
    os.environ |= environment
    # As in `python -m lit_merge …`, which Lightning repeats for the other processes of a fit.
    sys.argv[:] = ["lit_merge", *arguments]
    sys.modules["__main__"].__spec__ = find_spec("lit_merge.__main__")
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    raise SystemExit(main(arguments))
