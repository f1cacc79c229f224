"""What a verb says of its output."""

from pathlib import Path

from lit_merge.console import terminal
from lit_merge.report.weight_tree import megabytes


def say_written(output: str) -> None:
    """Names a file or folder, with its size."""
    path = Path(output)
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    terminal().print(f"Written to {path}: {megabytes(size)}", soft_wrap=True)


def say_folder(output: str) -> None:
    """Names a folder and what lies in it."""
    names = ", ".join(sorted(path.name for path in Path(output).iterdir()))
    terminal().print(f"Written to {output}: {names}", soft_wrap=True)


def say_copied(names: list[str]) -> None:
    """Names the files that were copied next to weights."""
    if names:
        terminal().print(f"Copied next to the weights: {', '.join(names)}", soft_wrap=True, highlight=False)
