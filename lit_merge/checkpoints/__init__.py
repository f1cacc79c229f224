"""Reading weights lazily and writing files so that a failure leaves the old file or the new one."""

from lit_merge.checkpoints.reader import Checkpoint, SafetensorsFile, Source, StateDict, open_checkpoint
from lit_merge.checkpoints.selection import Selection, modernised, named_like, without
from lit_merge.checkpoints.writer import check_output, replacing, write_safetensors, write_text

__all__ = [
    "Checkpoint",
    "SafetensorsFile",
    "Selection",
    "Source",
    "StateDict",
    "check_output",
    "modernised",
    "named_like",
    "open_checkpoint",
    "replacing",
    "without",
    "write_safetensors",
    "write_text",
]
