"""`python -m lit_merge`, and the console command `lit-merge`."""

import io
import os
import sys
from typing import Any

from lit_merge.cli.main import main


def run() -> None:
    """Runs the command that this process was started with, and ends with its exit code."""
    # Large pages for torch's memory, where Linux hands them out on request: with small ones, half of the time that it
    # takes to read weights goes into asking for them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _open_what_is_closed()
    out = StandardStream(1)
    # Names of files need not be UTF-8.
    sys.stdout, sys.stderr = out.text(sys.stdout, "backslashreplace"), StandardStream(2).text(sys.stderr)
    try:
        code = main(sys.argv[1:])
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    sys.stdout.flush()
    # Of a pipe that nobody reads any more, as in `lit-merge zoo | head -1`, nothing needs to be said.
    if out.lost and not isinstance(out.lost, BrokenPipeError):
        print(f"lit_merge: error: standard output: {out.lost.strerror}", file=sys.stderr)
        code = code or 2
    sys.exit(code or int(out.lost is not None))


class StandardStream(io.FileIO):
    """Standard output or error, which need not take what is written: that does not stop a command's work.

    Attributes:
        lost: why it did not take something.
    """

    def __init__(self, place: int) -> None:
        super().__init__(place, "w", closefd=False)
        self.lost: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.lost = error
            return len(data)

    def text(self, like: Any, errors: str | None = None) -> io.TextIOWrapper:
        """A stream of texts to it, as another one is."""
        made = io.TextIOWrapper(io.BufferedWriter(self), like.encoding, errors or like.errors)
        made.reconfigure(line_buffering=like.line_buffering, write_through=like.write_through)
        return made


def _open_what_is_closed() -> None:
    """Nothing comes and goes by a standard stream that is closed: otherwise the next file would be opened in its place,
    and whatever is printed would be written into it."""
    for place, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(place)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the first place that is free
            setattr(sys, name, os.fdopen(place, mode, encoding="utf-8", closefd=False))


if __name__ == "__main__":
    run()
