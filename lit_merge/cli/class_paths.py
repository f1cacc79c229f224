"""Which class a `class_path` names, by its source: a module is imported, and so run, only for one that is wanted."""

import ast
import builtins
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from jsonargparse import _actions, _typehints

from lit_merge.errors import MergeError

# Modules that a class may come through before its source is given up.
DEEPEST = 10
Wanted = tuple[type, ...]


@contextmanager
def only_wanted(refused: list[MergeError]) -> Iterator[None]:
    """Inside, the parser imports no module for a name that cannot be what it wants; `refused` gets the errors."""
    resolve = _typehints.resolve_class_path_by_name

    def checked(wanted: Any, name: str) -> str:
        path = resolve(wanted, name)
        types = tuple(one for one in (wanted if isinstance(wanted, tuple) else (wanted,)) if inspect.isclass(one))
        if types and "." in path and (reason := why_not(path, types)):
            refused.append(MergeError(f"class_path {path}: {reason}: nothing of it was imported"))
            raise ValueError(reason)
        return path

    with _replaced("resolve_class_path_by_name", checked):
        yield


@contextmanager
def _replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
    homes = [module for module in (_typehints, _actions) if hasattr(module, name)]
    before = [getattr(module, name) for module in homes]
    for module in homes:
        setattr(module, name, function)
    try:
        yield
    finally:
        for module, old in zip(homes, before, strict=True):
            setattr(module, name, old)


def why_not(path: str, wanted: Wanted) -> str | None:
    """Why a path can be no subclass of what is wanted; None where it is one, or where the source does not tell."""
    module, _, name = path.rpartition(".")
    expected = " or ".join(one.__name__ for one in wanted)
    if module in sys.modules:
        found = getattr(sys.modules[module], name, None)
        return None if not inspect.isroutine(found) else f"it is a function, expected a subclass of {expected}"
    if module.partition(".")[0] in sys.stdlib_module_names:
        return f"it is of Python's own library, expected a subclass of {expected}"
    return None if _derives(module, name, wanted, 0) is not False else f"it is no subclass of {expected}"


def _derives(module: str, name: str, wanted: Wanted, depth: int) -> bool | None:
    """Whether a name in a module is a subclass of what is wanted; None where the source does not tell."""
    if module in sys.modules:
        found = getattr(sys.modules[module], name, None)
        return issubclass(found, wanted) if inspect.isclass(found) else None
    if module.partition(".")[0] in sys.stdlib_module_names:
        return False
    tree, package = _source(module)
    if tree is None or depth > DEEPEST:
        return None
    bound: dict[str, ast.stmt] = {}
    for statement in _statements(tree.body):
        for one in _names(statement):
            bound[one] = statement
    node = bound.get(name)
    if node is None:
        return None if {"*", "__getattr__"} & bound.keys() else False
    if isinstance(node, ast.ClassDef):
        found = [_of_base(base, module, package, bound, wanted, depth + 1) for base in node.bases]
        return True if True in found else None if None in found else False
    if isinstance(node, ast.ImportFrom):
        source = _absolute(package, node)
        original = next((one.name for one in node.names if (one.asname or one.name) == name), name)
        return _derives(source, original, wanted, depth + 1)
    return False if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Import) else None


def _of_base(
    base: ast.expr, module: str, package: str, bound: dict[str, ast.stmt], wanted: Wanted, depth: int
) -> bool | None:
    if isinstance(base, ast.Subscript):
        base = base.value
    path = ast.unparse(base)
    first, _, rest = path.partition(".")
    if not all(part.isidentifier() for part in path.split(".")):
        return None
    if not rest:
        return False if first not in bound and hasattr(builtins, first) else _derives(module, first, wanted, depth)
    node = bound.get(first)
    if isinstance(node, ast.Import):
        for one in node.names:
            if one.asname == first or (one.asname is None and one.name.partition(".")[0] == first):
                path = f"{one.name}.{rest}" if one.asname else path
    elif isinstance(node, ast.ImportFrom):
        original = next((one.name for one in node.names if (one.asname or one.name) == first), first)
        path = f"{_absolute(package, node)}.{original}.{rest}"
    else:
        return None
    home, _, name = path.rpartition(".")
    return _derives(home, name, wanted, depth)


def _source(module: str) -> tuple[ast.Module | None, str]:
    """The source of a module that is found without importing the packages around it, and the package that it is in."""
    places, spec = None, None
    parts = module.split(".")
    for i in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), places)
        if spec is None:
            return None, ""
        places = spec.submodule_search_locations
    package = module if places is not None else module.rpartition(".")[0]
    try:
        return ast.parse(Path((spec and spec.origin) or "").read_bytes()), package
    except (OSError, ValueError, SyntaxError):
        return None, package  # said when it is imported


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """What a module runs itself, also under conditions."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for one in getattr(node, inner, ()):
                    yield from _statements(one.body if isinstance(one, ast.ExceptHandler) else [one])


def _names(node: ast.stmt) -> list[str]:
    """Names that a statement binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Import):
        return [one.asname or one.name.partition(".")[0] for one in node.names]
    if isinstance(node, ast.ImportFrom):
        return [one.asname or one.name for one in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [one.id for target in targets if target for one in ast.walk(target) if isinstance(one, ast.Name)]


def _absolute(package: str, node: ast.ImportFrom) -> str:
    """The module that a statement imports from."""
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])
