"""What a user is told: our warnings in one line each, and not what Lightning tells developers."""

import logging
import warnings

from lit_merge.errors import MergeWarning


def quiet() -> None:
    """Leaves out what Lightning tells developers, not users."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        "does not have many workers",
        "args parameter is intended to run from within Python",
        "module\\(s\\) in eval mode at the start of training",
        "isinstance\\(treespec, LeafSpec\\)",
        "tensorboardX",
        "No seed found",
        "GPU available but not used",
        "your dataloader is not resumable",
        "smaller than the logging interval",
        "was deprecated in v4.49",
        "By default only one JsonargparseDeprecationWarning",
    ):
        warnings.filterwarnings("ignore", f"(?s).*{text}")
    warnings.formatwarning = _one_line


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    told = " ".join(str(message).split())
    return f"lit_merge: warning: {told}\n" if issubclass(category, MergeWarning) else f"{filename}:{lineno}: {told}\n"
