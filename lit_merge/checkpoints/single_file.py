"""One file of weights, whose format its content says rather than its name."""

from pathlib import Path

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.safetensors_file import SafetensorsFile, starts_safetensors
from lit_merge.checkpoints.torch_file import PICKLE, ZIP, TorchFile
from lit_merge.errors import MergeError

EXPECTED = "a file of weights: safetensors, or what torch.save wrote"


def open_one_file(path: Path | InputFile, lenient: bool = False, inside: str | None = None) -> Checkpoint:
    """A safetensors file or one of torch.save, which may be open; `lenient` and `inside` as of `TorchFile`.

    Raises:
        MergeError: missing, unreadable, of another format, or broken.
    """
    file = InputFile(path, EXPECTED) if isinstance(path, Path) else path
    path, start = file.path, file.start(EXPECTED)
    if inside is not None and not start.startswith((ZIP, PICKLE)):
        raise MergeError(f"{path}#{inside}: only what torch.save wrote holds several models: leave out #{inside}")
    if starts_safetensors(start):
        return SafetensorsFile(file, lenient)
    if start.startswith((ZIP, PICKLE)):
        return TorchFile(file, lenient, inside)
    if start.startswith(b"GGUF"):
        raise MergeError(f"{path} is a GGUF file, quantised for inference: merge the weights that it was made of")
    raise MergeError(f"{path} is not a safetensors file, nor one that torch.save wrote: copy or download it again")
