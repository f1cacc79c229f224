"""`python -m lit_merge`."""

import sys

from lit_merge.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
