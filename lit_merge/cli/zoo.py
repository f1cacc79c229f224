"""The verb `zoo`: what is in a built-in suite, and a copy of its files to start from."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.text import Text

from lit_merge.checkpoints import SafetensorsFile, check_output, replacing
from lit_merge.checkpoints.json_text import parse_json, read_object
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import resolve
from lit_merge.cli.command_parser import CommandParser
from lit_merge.console import table, terminal


def _is_copy(folder: Path) -> bool:
    tasks = {task["name"] for task in parse_json((folder / "zoo.json").read_bytes())["tasks"]}
    return {path.stem for path in (folder / "experts").iterdir()} <= tasks


COPY = Kind(
    "zoo", _is_copy, r"zoo\.json|network\.json|(base|heads|images|labels|experts/[^/]+)\.safetensors|[A-Z]+\.md"
)


def zoo(arguments: Sequence[str]) -> None:
    """Lists the suite; with --output, copies its files there.

    Raises:
        MergeError: an option that does not exist, a suite that is not built, a path that cannot be written.
    """
    parser = CommandParser("zoo", __doc__)
    parser.add_argument("suite", nargs="?", default="8", help="8 (shipped), or one that scripts/build_zoo.py made: 14")
    parser.add_argument("--output", help="folder to copy the suite's files to")
    parser.add_argument("--overwrite", action="store_true", help="replace what stands at --output")
    options = parser.parse_args(arguments)
    suite = options.suite.removeprefix("zoo:")
    folder = resolve(f"zoo:{suite}")
    if options.output is not None:
        check_output(options.output, options.overwrite, COPY)
    console = terminal()
    console.print(contents(folder, suite))
    if options.output is not None:
        with replacing(options.output, options.overwrite, COPY) as draft:
            copy(folder, draft)
        console.print(f"Copied to {options.output}", soft_wrap=True)


def copy(folder: Path, target: Path) -> None:
    """Copies files with the modes of new ones: those of an installed package may be read-only."""
    target.mkdir()
    for path in folder.iterdir():
        copy(path, target / path.name) if path.is_dir() else shutil.copyfile(path, target / path.name)


def contents(folder: Path, suite: str) -> Group:
    """A table of the tasks, with numbers of classes and images."""
    about = read_object(folder / "zoo.json", "suite")
    images = SafetensorsFile(folder / "images.safetensors")
    numbers = ("classes", "validation", "adaptation", "test")
    listed = table("task", *numbers, "domain", right=numbers)
    for task in about["tasks"]:
        counts = [images.shapes[f"{task['name']}/{split}"][0] for split in ("validation", "adaptation", "test")]
        listed.add_row(task["name"], str(len(task["classes"])), *map(str, counts), task["domain"])
    experts = sum(path.stat().st_size for path in (folder / "experts").iterdir())
    notes = (
        f"{len(about['tasks'])} experts, together {experts / 1e6:.1f} MB; images {images.nbytes / 1e6:.1f} MB. "
        f"In configurations, zoo:{suite}/… names the files. Sources and licences: ATTRIBUTION.md among them."
    )
    return Group(listed, Text(notes))
