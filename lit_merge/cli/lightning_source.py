"""Source that is read instead of imported: Lightning takes seconds to import, which a `--help` or a wrong option must
not wait for. What cannot be read off for certain raises LookupError, and is left to Lightning."""

import ast
import builtins
import functools
import importlib.util
import re
from importlib import import_module
from pathlib import Path
from sys import stdlib_module_names
from typing import Any


@functools.cache
def tree_of(module: str) -> ast.Module:
    """A module, parsed.

    Raises:
        LookupError: there is no such module.
    """
    top, *inner = module.split(".")
    path = _folder(top).joinpath(*inner)
    try:
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LookupError(module) from error


def type_of(annotation: ast.expr | None, module: str) -> Any:
    """The type that an annotation in this module means; Any where a class of Lightning's own is part of it."""
    if annotation is None:
        return Any
    try:
        return _evaluated(annotation, module)
    except LookupError:
        return Any


def _evaluated(expression: ast.expr, module: str) -> Any:
    names = {node.id: _meaning(node.id, module) for node in ast.walk(expression) if isinstance(node, ast.Name)}
    return eval(compile(ast.Expression(expression), module, "eval"), names)


def _meaning(name: str, module: str) -> Any:
    """What a name stands for in a module, where that is Python's own, or an alias of it.

    Raises:
        LookupError: it is a class, or comes from another package.
    """
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign) and _names(node, name):
            return _evaluated(node.value, module)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    if node.module.partition(".")[0] in stdlib_module_names:
                        return getattr(import_module(node.module), alias.name)
                    return _meaning(alias.name, node.module)
    if hasattr(builtins, name):
        return getattr(builtins, name)
    raise LookupError(name)


def exported(package: str) -> list[str]:
    """The classes that the `__init__` of a package imports, by their names."""
    found = [node for node in tree_of(package).body if isinstance(node, ast.ImportFrom)]
    names = [alias.asname or alias.name for node in found for alias in node.names]
    return [name for name in names if name[:1].isupper()]


def has_class(name: str) -> bool:
    """Whether any file of Lightning defines a class of this name."""
    return _anywhere(rf"^\s*class {re.escape(name)}\b")


def has_text(text: str) -> bool:
    """Whether this text stands in any file of Lightning, between quotes."""
    return _anywhere(rf"""(["']){re.escape(text)}\1""")


def _anywhere(pattern: str) -> bool:
    found = re.compile(pattern, re.MULTILINE)
    return any(found.search(path.read_text(encoding="utf-8")) for path in _folder("lightning").rglob("*.py"))


def _names(node: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)


@functools.cache
def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise LookupError(package)
    return Path(spec.submodule_search_locations[0])
