"""Runs `python -m lit_merge` commands in forks of one process that has imported everything: a start costs nothing.

Reads a line of JSON, [arguments, seconds after which the command is killed or null], and answers with its exit code.
"""

import json
import os
import signal
import sys
import time

import torch

import lit_merge.cli  # noqa: F401
from lit_merge.command import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        arguments, kill_after = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(2, 1)  # standard output is for the answers
                code = main(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if kill_after is not None:
            time.sleep(kill_after)
            # Not waited for yet: no other process can have its number.
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
