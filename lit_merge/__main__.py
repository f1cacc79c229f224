"""`python -m lit_merge`, and the console command `lit-merge`."""

import os
import sys

from lit_merge.cli.main import main


def run() -> None:
    """Runs the command that this process was started with, and ends with its exit code."""
    # Large pages for torch's memory, where Linux hands them out on request: with small ones, half of the time that it
    # takes to read weights goes into asking for them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Names of files need not be UTF-8.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
