"""torch.compile of a network's encoder."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from lit_merge.errors import MergeError, first_line


def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A function that torch.compile compiles at its first call for each kind of input. Weights in it may be the result
    of a merge, with a graph of their own."""
    fast = torch.compile(forward)

    @wraps(forward)
    def call(*inputs: Any, **options: Any) -> Any:
        with warnings.catch_warnings():
            # torch.compile looks at `.grad` of every weight, also of those that were computed.
            warnings.filterwarnings("ignore", ".*attribute of a Tensor that is not a leaf")
            return fast(*inputs, **options)

    return call


def check_compiler(device: torch.device) -> None:
    """Raises MergeError where torch.compile cannot work on this device, as on a CPU without a C++ compiler."""
    try:
        torch.compile(_probe)(torch.ones(2, device=device))
    except Exception as error:  # in as many ways as there are compilers
        needs = "a C++ compiler, as g++" if device.type == "cpu" else "triton"
        raise MergeError(
            f"compile=true, but torch.compile does not work on {device.type} here ({first_line(error)}): leave it out, "
            f"or install {needs}"
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
