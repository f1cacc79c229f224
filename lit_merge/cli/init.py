"""The verb `init`: a first configuration from a folder of experts."""

from collections.abc import Sequence
from pathlib import Path

from lit_merge.checkpoints import check_output, write_text
from lit_merge.checkpoints.kinds import Kind
from lit_merge.cli.command_parser import CommandParser
from lit_merge.cli.starting import ModelKind, configuration_text, find_files, kind_of
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.experts.files import open_all

ABOUT = """\
Writes one whole YAML file for the experts in a folder, ready for `fit` (of language models for `merge`): what they are,
their names, base, network and image size are found by themselves, from headers. What lies next to the folder is taken
too: base, pretrained or zeroshot; heads.safetensors or classes; images, texts and labelled. Comments in the file say
what is still to fill in.
"""
SIGN = "# Written by `lit-merge init`"
CONFIGURATION = Kind("init", lambda path: path.read_text(encoding="utf-8").startswith(SIGN))


def init_command(arguments: Sequence[str]) -> None:
    """Looks, writes, and says what was found and what is still to fill in.

    Raises:
        MergeError: no experts, experts of several kinds or that do not fit together, a path that cannot be written.
    """
    parser = CommandParser("init", ABOUT)
    parser.add_argument("folder", help="a file or a model's folder for every task, or a folder with `experts` in it")
    parser.add_argument("--output", required=True, help="the configuration, FILE.yaml")
    parser.add_argument("--base", help="the pretrained model, where it does not lie next to the experts")
    parser.add_argument("--overwrite", action="store_true", help="replace what stands at --output")
    options = parser.parse_args(arguments)
    if Path(options.output).suffix not in (".yaml", ".yml"):
        raise MergeError(f"init: --output {options.output}: expected a name that ends in .yaml")
    check_output(options.output, options.overwrite, CONFIGURATION)
    files = find_files(options.folder, options.base)
    opened, base = open_all(files.experts, files.base)
    kind = kind_of(opened)
    if kind is not ModelKind.TEXT:
        # Of texts every expert's classifier has classes of its own: `fit` leaves them out, and checks the rest.
        Experts(opened, base)
    text, missing, about = configuration_text(files, kind, next(iter(opened.values())), options.output)
    write_text(options.output, text, options.overwrite, CONFIGURATION)
    print(f"{len(files.experts)} {about}.")
    print(f"Base: {files.base}." if files.base else "No base was found: CART and weight averaging do without.")
    for one in missing:
        print(f"Still to fill in: {one}.")
    print(f"Written to {options.output}")
