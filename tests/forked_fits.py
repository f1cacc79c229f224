"""Runs `python -m lit_merge` commands in forks of one process that has imported everything: a start costs nothing.

Reads a JSON list of arguments a line; answers a line with the process's number, and one with its exit status.
"""

import json
import os
import sys

import torch

import lit_merge.cli  # noqa: F401
from lit_merge.command import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(2, 1)  # standard output is the protocol's
                code = main(json.loads(line))
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
