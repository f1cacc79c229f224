"""The options of Lightning's Trainer, read off its source: importing Lightning takes seconds, which a `--help` or a
misspelt option must not."""

import ast
import functools
import importlib.util
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

KNOWN: dict[str, Any] = {
    **{kind.__name__: kind for kind in (int, float, str, bool, dict, list)},
    "Any": Any,
    "Literal": Literal,
    "Optional": Optional,
    "Union": Union,
}


@functools.cache
def trainer_options() -> type:
    """A class whose constructor takes what `lightning.pytorch.Trainer` takes, with its defaults and documentation.

    Types that are Lightning's own become `Any`: they are checked when Lightning is there.
    """
    spec = importlib.util.find_spec("lightning")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0]) / "pytorch" / "trainer" / "trainer.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    trainer = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    init = next(node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    about = ast.get_docstring(init) or ""
    init.decorator_list, init.body, init.returns = [], [ast.Pass()], None
    for argument in init.args.kwonlyargs:
        argument.annotation = _plain(argument.annotation)
    names: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(ast.Module([init], [])), str(source), "exec"), dict(KNOWN), names)
    names["__init__"].__doc__ = about
    return type("Trainer", (), {"__doc__": "Options of Lightning's Trainer.", "__init__": names["__init__"]})


def without_opaque(arguments: Sequence[str], options: type) -> list[str]:
    """The arguments without the Trainer's that only Lightning can read, as `--trainer.callbacks+=RankSchedule`.

    Args:
        arguments: of a command line.
        options: what `trainer_options` answers.
    """
    listed = inspect.signature(options).parameters.items()
    opaque = re.compile(
        rf"--trainer\.({'|'.join(name for name, one in listed if one.annotation is Any)})[+.]?[\w.]*(=.*)?"
    )
    rest: list[str] = []
    value_follows = False
    for argument in arguments:
        if value_follows and not argument.startswith("--"):
            value_follows = False
        elif match := opaque.fullmatch(argument.replace("\n", " ")):
            value_follows = match[2] is None
        else:
            rest.append(argument)
            value_follows = False
    return rest


def _plain(annotation: ast.expr | None) -> ast.expr:
    """The annotation, where all names in it are Python's own."""
    named = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)] if annotation else ["Trainer"]
    return annotation if annotation is not None and set(named) <= KNOWN.keys() else ast.Name("Any", ast.Load())
