"""`python -m lit_merge`."""

import os
import sys

from lit_merge.cli.main import main

if __name__ == "__main__":
    # Large pages for torch's memory, where Linux hands them out on request: with small ones, half of the time that it
    # takes to read weights goes into asking for them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Names of files need not be UTF-8.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
