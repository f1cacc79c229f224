"""Reading weights lazily and writing files so that a failure leaves the old file or the new one."""

from lit_merge.checkpoints.naming import PLAIN, Family, Naming, NamingName, detect, is_image, named
from lit_merge.checkpoints.reader import Checkpoint, SafetensorsFile, Source, StateDict, open_checkpoint
from lit_merge.checkpoints.renaming import Renamed, canonical, canonical_weights, rename
from lit_merge.checkpoints.writer import check_output, replacing, write_safetensors, write_text

__all__ = [
    "PLAIN",
    "Checkpoint",
    "Family",
    "Naming",
    "NamingName",
    "Renamed",
    "SafetensorsFile",
    "Source",
    "StateDict",
    "canonical",
    "canonical_weights",
    "check_output",
    "detect",
    "is_image",
    "named",
    "open_checkpoint",
    "rename",
    "replacing",
    "write_safetensors",
    "write_text",
]
