"""What jsonargparse says of a configuration, in one line and with the nearest name that exists."""

import inspect
import re
from abc import ABC
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from lit_merge.cli.catalogue import KINDS, catalogue

_OPTION = re.compile(r"Problem with given class_path '([\w.]+)': Option '([\w.]+)' is not accepted")
_VALUE = re.compile(
    r"(?:Problem with given class_path '(?P<owner>[\w.]+)': )?Parser key \"(?P<key>[\w.]+)\": "
    r"Expected an? (?P<kind>.*?)\. Got value: (?P<value>.*?)(?= - |$)"
)
_CLASS = re.compile(r"<class '([\w.]+)'>.*Expected a dot import path string: ([\w.]+)")
# The same of a field of a chosen class, as a stage's objective.
_FIELD_CLASS = re.compile(
    r"Parser key \"(?P<key>[\w.]+)\": Does not validate against any of the Union subtypes Subtypes: "
    r"\[<class '(?P<wanted>[\w.]+)'>[^]]*\] Errors: - Expected a dot import path string: (?P<name>[\w.]+) "
)
_UNION = re.compile(r"of the Union subtypes Subtypes: \[(?P<kind>.*?)\] Errors: .*Given value: (?P<value>.*)$")
# A field of a chosen class that takes one of several types: the innermost complaint.
_FIELD = re.compile(
    r"Problem with given class_path '[\w.]+': Parser key \"(?P<key>[\w.]+)\": Does not validate against any of the "
    r"Union subtypes Subtypes: \[(?P<kind>[^:]*)\] Errors: (?:(?!Parser key).)*? Given value type: [^:]* "
    r"Given value: (?P<value>.*?)(?= - Expected | Given value type|$)"
)
# Of OmegaConf: what it could not put in, and where.
_INTERPOLATION = re.compile(r"^.*? full_key: (?:(?:fit|validate|test|predict)\.)?([\w.\[\]]+)")
_PLACE = re.compile(r'^Parser key "([\w.]+)": ')
_UNKNOWN = re.compile(
    r"unrecognized arguments: --([\w.]+)|"
    r"(?:Group '(?P<group>[\w.]+)' does not accept option|does not accept option|^Option) '(?P<option>[\w.]+)'"
)
_SWITCH = re.compile(r"Value not boolean: (.*)\.$")
_LACKING = re.compile(
    r"Problem with given class_path '([\w.]+)': the following arguments are required: ([\w, ]+?)(?= - | Given |$)"
)
_REQUIRED = re.compile(r"the following arguments are required: (.*)")
_STRAY = re.compile(r"^unrecognized arguments: ([^-\s]\S*\.ya?ml)\b")
_WORDS = {"float": "a number", "int": "a whole number", "bool": "true or false"}
# What an option takes, where its type says it in too many words.
_FORMS = {
    "model.experts": "a file or folder for each task, as {mnist: mnist.safetensors}, or one folder with all experts",
    "model.stages": "a list of stages, as [{granularity: tied, steps: 100, lr: 0.01}]",
    "model.correction": "its options, as {rank: 32, lr: 0.001}",
    "model.exclude": 'a list of names or patterns, as ["head*"]',
}
# Other programs' words for a dtype.
_DTYPES = {"half": "float16", "fp16": "float16", "f16": "float16", "bf16": "bfloat16", "fp32": "float32"}
# Made by the command line itself.
_PRIVATE = ("LineLog",)
# Options whose value is a class: what those that may stand there derive from.
_CLASSES = {
    "model.stages": "lit_merge.adaptation.stages.Stage",
    "model.method": "lit_merge.methods.base.MergeMethod",
    "model.transform": "lit_merge.methods.base.Transform",
    "model.objective": "lit_merge.objectives.Objective",
    "model.network": "lit_merge.networks.network.Network",
    "data": "lit_merge.data.task_data.TaskData",
}


def explain(message: str, options: Iterable[str] = (), configs: Sequence[str] = ()) -> str:
    """One line for a user.

    Args:
        message: jsonargparse's.
        options: names of all options of the verb, with dots.
        configs: paths of the configuration files that were read.
    """
    message = " ".join(message.split()).replace("Got value: - ", "Got value: '' - ")
    # One value of a mapping, as --data.classes.birds gives it.
    message = re.sub(r"NestedArg\(key='([^']*)', val=(.*?)\)(?= Given | - |$)", r"{\1: \2}", message)
    place = match.group(1) if (match := _PLACE.search(message)) else ""
    files = ", ".join(configs) or "the configuration"
    if place == "config":
        return f"{files}: no such configuration file"
    if "codec can't decode" in message:
        return f"{place or files}: the file that it names is no text in UTF-8: save it in UTF-8"
    if match := _SWITCH.search(message):
        return f"a switch, as overwrite: expected true or false, got {match[1]}"
    if match := _INTERPOLATION.search(message):
        said = re.sub(r"'\.+", "'", match[0].partition(" full_key")[0])
        return f"{files}: {match[1]}: {said}"
    if message.startswith("Problems parsing config:"):
        problem = message.removeprefix("Problems parsing config: ").replace('in "<unicode string>", ', "at ")
        tabs = ": it wants spaces, and no tabs" if "cannot start any token" in problem else ""
        return f"{files} is not valid YAML{tabs}: {problem}"
    if message.startswith("Unexpected config:"):
        return f"{files} is no configuration: expected a YAML mapping of options"
    if match := _OPTION.search(message):
        owner, name = match.groups()
        known = list(inspect.signature(imported(owner)).parameters)
        return f"{place}: {_short(owner)} has no option {name!r}{nearest(name, known)}; it has {', '.join(known)}"
    if match := _LACKING.search(message):
        return f"{place}: {_short(match[1])} needs {match[2]}"
    if place in _FORMS and "class_path" not in message and (match := re.search(r"Given value: (.*)$", message)):
        return f"{place}: expected {_FORMS[place]}, got {match[1]}"
    if match := _VALUE.search(message):
        key = match["key"] if match["owner"] is None else f"{place}.{match['key']}"
        return f"{key}: expected {_kind(match['kind'])}, got {match['value']}{_meant(match)}"
    if match := _FIELD_CLASS.search(message):
        return _no_class(f"{place}.{match['key']}", match["wanted"], match["name"])
    if (match := _CLASS.search(message)) and "." in match[1]:
        return _no_class(place, match[1], match[2])
    if match := _FIELD.search(message):
        return f"{place}.{match['key']}: expected {_kind(match['kind'])}, got {match['value']}{_meant(match)}"
    if (match := _UNION.search(message)) and place in _FORMS:
        space = "; YAML wants a space after a colon" if re.search(r"'\w+:[^']*': None", match["value"]) else ""
        return f"{place}: expected {_FORMS[place]}, got {match['value']}{space}"
    if (
        (match := _UNION.search(message))
        and match["value"].startswith("{")
        and not re.search(r"'class_path'|dict\[", match["value"] + match["kind"])
    ):
        return f"{place}: expected {_kind(match['kind'])}, as class_path: NAME with its init_args, got {match['value']}"
    if match := _UNION.search(message):
        return f"{place}: expected {_kind(match['kind'])}, got {match['value']}{_meant(match)}"
    if match := _STRAY.search(message):
        return f"{match[1]} stands alone: give a configuration with --config {match[1]}"
    if match := _UNKNOWN.search(message):
        return _unknown_option(match[1] or ".".join(filter(None, (match["group"], match["option"]))), options)
    if match := _REQUIRED.search(message):
        missing = ", ".join("--" + (name.partition(".")[2] or name) for name in match.group(1).split(", "))
        return f"missing {missing}: give a file with --config (configs/quickstart.yaml is an example), or the options"
    if match := re.match(r"argument (--[\w./-]+): (.*)", message):
        return f"{match.group(1)}: {match.group(2)}"
    said = _PLACE.sub("", message).partition(" Given value type:")[0]
    return f"{place}: {said}" if place else said


def refusal(message: str) -> str | None:
    """What a class says that cannot be built, of a message about all types that its option takes; None of others."""
    if "any of the Union subtypes" not in message or not (owner := re.search(r"class_path='([\w.]+)'", message)):
        return None
    complaints = re.findall(r"^ +- (.*?)(?=^ +- |^ *Given value type)", message, re.DOTALL | re.MULTILINE)
    own = [one for one in complaints if not one.startswith(("Expected a", "Not a valid subclass"))]
    if not own:
        return None
    name, said = _short(owner[1]), " ".join(own[0].split())
    return said if said.startswith(name) else f"{name}: {said}"


def _no_class(place: str, wanted: str, name: str) -> str:
    """That no class below `wanted` is called so, the nearest, and all that there are."""
    known = _named(wanted)
    there = f"; there are {', '.join(known)}, which `lit-merge explain NAME` explains" if known else ""
    if name in known:
        return f"{place}: write {name} alone; its options are --{place}.OPTION"
    return f"{place}: there is no {_short(wanted)} {name!r}{nearest(name, known)}{there}"


def _unknown_option(name: str, options: Iterable[str]) -> str:
    """The first part of a dotted name that nothing is called, and the nearest of the names in its place."""
    parts = name.split(".")
    options = list(options)
    meant = _elsewhere(parts[0] if f"model.{parts[0]}" in options else parts[-1], options)
    if meant is not None:
        return f"no option {name!r}; {meant}"
    known = [option.split(".") for option in options]
    depth = next(
        (i for i in range(len(parts)) if not any(one[: i + 1] == parts[: i + 1] for one in known)), len(parts) - 1
    )
    prefix = ".".join(parts[:depth])
    there = sorted({one[depth] for one in known if len(one) > depth and one[:depth] == parts[:depth]})
    near = nearest(parts[depth], there, prefix and prefix + ".")
    return f"no option {'.'.join(parts[: depth + 1])!r}{near}; `lit-merge VERB --help` lists them"


def _elsewhere(name: str, options: Sequence[str]) -> str | None:
    """Where an option is that was looked for in another place: under `model`, or of a class that is chosen there."""
    if name in ("experts", "base", "method", "transform", "bank", "network", "stages") and f"model.{name}" in options:
        return f"it is --model.{name}; in a file, {name} stands under model"
    for place, path in _CLASSES.items():
        if place in options and (owners := _with_option(imported(path), name)):
            of = f"of {', '.join(owners[:3])}{', …' if owners[3:] else ''}"
            if place == "model.stages":
                return f"it is {of}, in --model.stages: {_FORMS[place]}"
            return f"it is {of}: --{place}.{name}, after --{place}"
    return None


def _with_option(base: type, name: str) -> list[str]:
    """Names of the classes, `base` or below it, that take an option of this name."""
    found = [one for one in (base, *_classes(base)) if not inspect.isabstract(one) and not one.__name__.startswith("_")]
    return sorted(one.__name__ for one in found if name in inspect.signature(one).parameters)


def nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    """The end of a message that names what may have been meant; empty where nothing is near."""
    found = {one.lower(): one for one in known}
    # One that begins like the other counts as near, however much longer it is.
    begun = [one for one in found if name.lower().startswith(one) or one.startswith(name.lower())]
    near = begun or get_close_matches(name.lower(), found, n=1, cutoff=0.54)
    return f"; the nearest is {prefix}{found[near[0]]}" if near else ""


def _meant(match: re.Match[str]) -> str:
    """The end of a message that says what a value may have been meant as."""
    value, literals = match["value"], re.findall(r"Literal\[(.*?)\]", match["kind"])
    choices = re.findall(r"'([^']*)'", " ".join(literals))
    if _DTYPES.get(value) in choices:
        return f": write {_DTYPES[value]}"
    if "float" in match["kind"] and re.fullmatch(r"-?\d+,\d+", value):
        return f": write {value.replace(',', '.')}, with a point"
    if "float" in match["kind"] and re.fullmatch(r"\d+(\.\d+)?\s*%", value):
        return f": write {float(value.rstrip('% ')) / 100:g}"
    return nearest(value, choices)


def _kind(said: str) -> str:
    """Literals and classes of a type as jsonargparse writes it, in words."""
    said = said.replace(", <class 'NoneType'>", "")
    if match := re.fullmatch(r"(?:list|(?:collections\.abc\.)?Sequence)\[(\w+)\]", said):
        return {"float": "numbers in a list, as [0.1, 0.2]", "int": "whole numbers in a list, as [1, 2]"}.get(
            match[1], "a list, as [one, two]"
        )
    if match := re.fullmatch(r"dict\[str, (\w+)\]", said):
        return {"str": "a name or path for each name", "float": "a number for each name"}.get(match[1], "a mapping")
    *first, last = [_WORDS.get(name, _short(name)) for name in re.findall(r"'([\w.-]+)'", said)] or [said]
    return f"{', '.join(first)} or {last}" if first else last


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def imported(path: str) -> Any:
    """The class or function of this path."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _named(wanted: str) -> list[str]:
    """Names of the public classes that may stand where one of this class is expected: the package's, or of loggers
    Lightning's."""
    kinds = {base: kind for kind, (base, *_) in KINDS.items()}
    if (kind := kinds.get(_short(wanted))) is not None:
        return sorted(name for name, entry in catalogue().items() if entry.kind == kind)
    found = [*_classes(imported(wanted)), *_classes(imported(wanted), "lightning.pytorch.loggers.")]
    hidden = [one for one in found if inspect.isabstract(one) or ABC in one.__bases__ or one.__name__ in _PRIVATE]
    return sorted({one.__name__ for one in found if one not in hidden and not one.__name__.startswith("_")})


def _classes(cls: type, package: str = "lit_merge.") -> list[type]:
    """A package's classes below one."""
    found: list[type] = []
    queue: list[type] = [cls]
    while queue:
        below: list[type] = queue.pop().__subclasses__()
        children = [child for child in below if child.__module__.startswith(package)]
        found += children
        queue += children
    return found
