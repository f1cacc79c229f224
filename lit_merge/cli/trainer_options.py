"""The options of Lightning's Trainer, read off its source, and what can be known of their values without Lightning."""

import ast
import functools
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from lit_merge.cli.lightning_source import exported, has_class, has_text, tree_of, type_of
from lit_merge.cli.parse_errors import nearest
from lit_merge.cli.written import read_written
from lit_merge.errors import MergeError

MODULE = "lightning.pytorch.trainer.trainer"
# Options that take names under which Lightning registers classes, and the usual ones; others are sought in its source.
REGISTERED = {
    "accelerator": ("auto", "cpu", "cuda", "gpu", "mps", "tpu"),
    "strategy": ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_spawn", "deepspeed", "fsdp", "single_device"),
}
# Option → what it takes, and the packages whose classes go by their short names.
CLASSES = {
    "callbacks": ("Callback", ("lightning.pytorch.callbacks", "lit_merge.adaptation.callbacks")),
    "logger": ("Logger", ("lightning.pytorch.loggers",)),
}
OWN = ("lightning", "lit_merge")
# As YAML writes switches; no names of classes.
SWITCHES = {"true", "false", "yes", "no", "on", "off", "null", "none"}


@functools.cache
def trainer_options() -> type:
    """A class whose constructor takes what `lightning.pytorch.Trainer` takes, with its defaults and documentation.

    Types with Lightning's own classes become `Any`: they are checked when Lightning is there.
    """
    trainer = next(node for node in tree_of(MODULE).body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    init = next(node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    found = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    for argument, value in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        default = inspect.Parameter.empty if value is None else ast.literal_eval(value)
        annotation = type_of(argument.annotation, MODULE)
        found.append(
            inspect.Parameter(argument.arg, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )

    def take(self: object, **options: Any) -> None: ...

    take.__doc__, take.__signature__ = ast.get_docstring(init) or "", inspect.Signature(found)  # type: ignore[attr-defined]
    return type("Trainer", (), {"__doc__": "Options of Lightning's Trainer.", "__init__": take})


def without_opaque(arguments: Sequence[str], options: type) -> list[str]:
    """The arguments without those that add to what only Lightning can read, as `--trainer.callbacks+=RankSchedule`.

    Args:
        arguments: of a command line.
        options: what `trainer_options` answers.
    """
    listed = inspect.signature(options).parameters.items()
    opaque = re.compile(
        rf"--trainer\.({'|'.join(name for name, one in listed if one.annotation is Any)})[+.][\w.]*(=.*)?", re.DOTALL
    )
    rest: list[str] = []
    value_follows = False
    for argument in arguments:
        if value_follows and not argument.startswith("--"):
            value_follows = False
        elif match := opaque.fullmatch(argument):
            value_follows = match[2] is None
        else:
            rest.append(argument)
            value_follows = False
    return rest


def check_names(trainer: Namespace, arguments: Sequence[str]) -> None:
    """Looks for the names that the options of a Trainer give: of classes, of accelerator and strategy.

    Other packages may register more names when they are imported: where one is named, or Lightning is there already,
    all is left to Lightning.

    Args:
        trainer: the options, as parsed.
        arguments: of the command line, for what is added to a list, as `--trainer.callbacks+=RankSchedule`.

    Raises:
        MergeError: a name that Lightning would not find.
    """
    if "lightning.pytorch" in sys.modules:
        return
    listed = (*CLASSES, *vars(trainer))
    paths = {name: [*_class_paths(trainer.get(name)), *_added(name, arguments)] for name in listed}
    if any("." in path and path.partition(".")[0] not in OWN for found in paths.values() for path in found):
        return
    for name, (kind, packages) in CLASSES.items():
        known: list[str] = []
        for package in packages:
            with suppress(LookupError):
                known += exported(package)
        for path in paths[name]:
            if path.isidentifier() and path not in known and not has_class(path):
                raise MergeError(f"trainer.{name}: there is no {kind} {path!r}{nearest(path, known)}")
    for name, usual in REGISTERED.items():
        value = trainer.get(name)
        if isinstance(value, str) and value not in usual and not has_text(value.lower()):
            raise MergeError(f"trainer.{name}: Lightning has no {value!r}{nearest(value, usual)}")


def _class_paths(value: Any) -> Iterator[str]:
    """The classes that a value names: by itself, as a mapping with a `class_path`, or as a list of those."""
    if isinstance(value, str):
        with suppress(yaml.YAMLError):
            value = read_written(value)
    if isinstance(value, str):
        if value.lower() not in SWITCHES and not Path(value).exists():
            yield value
    elif isinstance(value, Mapping | Namespace):
        yield from _class_paths(value.get("class_path"))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _class_paths(one)


def _added(name: str, arguments: Sequence[str]) -> Iterator[str]:
    """The classes that a command line adds to a list."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        option, _, value = argument.partition("=")
        if option == f"--trainer.{name}+":
            yield from _class_paths(value or following)
