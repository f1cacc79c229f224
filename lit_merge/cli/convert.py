"""The verb `convert`: a checkpoint of any format as safetensors."""

from collections.abc import Sequence
from typing import get_args

from lit_merge.checkpoints.conversion import DType, convert, shard_size
from lit_merge.checkpoints.naming import check_naming, naming_names
from lit_merge.cli.command_parser import CommandParser

ABOUT = """\
Reads a checkpoint (safetensors, what torch.save wrote, an index of shards, a folder of Hugging Face or open_clip, a
PEFT LoRA folder with --base, or hf://org/name) and writes its weights as safetensors, one at a time. Names stay as they
are but for a `module.` before all of them, or become those of another library (--naming, of a CLIP). Weights that the
source holds under two names (tied) are written under both.
"""


def convert_command(arguments: Sequence[str]) -> None:
    """Parses, converts, and says what was written.

    Raises:
        MergeError: anything that the user can mend.
    """
    parser = CommandParser("convert", ABOUT)
    parser.add_argument("source", help="file, folder, or hf://org/name[@revision][/folder or file]")
    parser.add_argument("--output", required=True, help="FILE.safetensors; with --max_shard_size a folder")
    parser.add_argument("--dtype", choices=get_args(DType), help="of floating-point weights; as they are by default")
    parser.add_argument("--base", help="the model that a LoRA adapter was trained on")
    parser.add_argument(
        "--max_shard_size", help="as 5GB: files of that size at most, with an index, as transformers has"
    )
    parser.add_argument(
        "--naming",
        metavar=f"{{{','.join(naming_names())}}}",
        help="whose names a CLIP's weights get; as they are by default",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what stands at --output")
    options = parser.parse_args(arguments)
    if options.naming is not None:
        check_naming(options.naming)
    size = shard_size(options.max_shard_size, options.output)
    held = convert(options.source, options.output, options.dtype, options.base, size, options.overwrite, options.naming)
    print(f"{len(held.shapes)} weights of {held.label} written to {options.output}")
