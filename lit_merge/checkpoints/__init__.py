"""Every file format of weights, read lazily and written whole or not at all; and the names of weights in libraries.

Other rooms see a `Checkpoint`: names, shapes, dtypes, and one tensor at a time. Nothing here knows tasks or methods.
"""

from lit_merge.checkpoints.checkpoint import Checkpoint, Source, StateDict
from lit_merge.checkpoints.families.family import is_image
from lit_merge.checkpoints.folders import holds_model
from lit_merge.checkpoints.naming import PLAIN, Naming, NamingName, detect, named
from lit_merge.checkpoints.outputs import check_output, replacing, write_text
from lit_merge.checkpoints.reader import open_checkpoint
from lit_merge.checkpoints.renaming import Named, Renamed, canonical, canonical_weights, rename
from lit_merge.checkpoints.safetensors_file import SafetensorsFile
from lit_merge.checkpoints.safetensors_writer import write_safetensors, write_stream
from lit_merge.checkpoints.selection import Selection, modernised, named_like, without
