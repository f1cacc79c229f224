"""The texts that a class is described by: its name, in templates as `a photo of a {}.`."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lit_merge.checkpoints.locations import resolve
from lit_merge.errors import MergeError


def clip_templates() -> list[str]:
    """The 80 templates of CLIP."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def read_class_names(task: str, file: str | os.PathLike[str]) -> list[str]:
    """Names of the classes of a task, one on every line that is not blank.

    Raises:
        MergeError: no such file, no name in it, or one twice.
    """
    path = resolve(file)
    names = read_lines(path, f"class names of task {task}")
    if not names:
        raise MergeError(f"{path} (class names of task {task}) is empty: expected a name on every line", task=task)
    return unique_names(task, names, str(path))


def unique_names(task: str, names: list[str], where: str) -> list[str]:
    """The names; MergeError where one is there twice."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise MergeError(
            f"{where} (class names of task {task}) names {', '.join(map(repr, twice))} more than once: give "
            "every class a name of its own",
            task=task,
        )
    return names


def read_templates(given: Sequence[str] | str | None) -> list[str]:
    """Templates from a list or a file; CLIP's 80 for None.

    Raises:
        MergeError: no such file, no template, or one without {}.
    """
    templates = clip_templates() if given is None else list(given)
    where = "templates"
    if isinstance(given, str):
        path = resolve(given)
        templates, where = read_lines(path, "templates"), str(path)
    if not templates:
        raise MergeError(f"{where}: expected at least one, as 'a photo of a {{}}.'")
    for template in templates:
        if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
            raise MergeError(f"{where}: {template!r} lacks the one {{}} where the name goes, as 'a photo of a {{}}.'")
    return templates


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that are not blank, without the space around them."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise MergeError(f"{path} ({what}): {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MergeError(
            f"{path} ({what}) is no text in UTF-8: {error.reason} at byte {error.start}: save it in UTF-8"
        ) from error
    return [line.strip() for line in lines if line.strip()]
