"""What a verb says of its output."""

from pathlib import Path

from lit_merge.console import note
from lit_merge.report.weight_tree import megabytes


def say_written(output: str) -> None:
    """Names a file or folder, with its size."""
    path = Path(output)
    try:
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    except OSError:
        return _say_place(output)
    note(f"Written to {path}: {megabytes(size)}", "written", {"path": str(path), "bytes": size})


def say_folder(output: str) -> None:
    """Names a folder and what lies in it."""
    try:
        names = sorted(path.name for path in Path(output).iterdir())
    except OSError:
        return _say_place(output)
    note(f"Written to {output}: {', '.join(names)}", "written", {"path": str(output), "files": names})


def _say_place(output: str) -> None:
    """Where a disk fails to list what it has taken: the output is in its place, so that the command is done."""
    note(f"Written to {output}", "written", {"path": str(output)})


def say_copied(names: list[str]) -> None:
    """Names the files that were copied next to weights."""
    if names:
        note(f"Copied next to the weights: {', '.join(names)}", "copied", {"files": names})
