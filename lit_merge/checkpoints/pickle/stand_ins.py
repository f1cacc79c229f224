"""What stands for the classes, functions and objects of a pickle: values that do nothing."""

from dataclasses import dataclass, field
from typing import Any

NOT_RUN = "the file may be hostile; nothing of it was run"
# Nothing is ever called, so these could stand in a file unharmed; but no model names them, and who reads the line
# should know what was tried.
LONGEST_NAME = 1000
HOSTILE = {
    *("os", "posix", "nt", "posixpath", "ntpath", "subprocess", "sys", "importlib", "runpy", "shutil", "socket"),
    *("ctypes", "pickle", "_pickle", "marshal", "codeop", "pty", "pdb", "bdb", "timeit", "cProfile", "webbrowser"),
    *("urllib", "http", "ftplib", "smtplib", "asyncio", "multiprocessing", "threading", "signal", "pip", "ensurepip"),
    *("pkgutil", "zipimport", "linecache", "doctest", "gc", "operator", "_operator", "tempfile", "io", "_io"),
    *("builtins", "__builtin__"),
}
HARMLESS = {
    *("set", "frozenset", "list", "tuple", "dict", "int", "float", "complex", "bool", "str", "bytes", "bytearray"),
    *("object", "type", "slice", "range", "print", "len", "sum", "min", "max", "abs", "round", "sorted", "NoneType"),
    *("NotImplemented", "Ellipsis", "unicode", "long"),
}


class Damaged(Exception):
    """What is wrong with a PyTorch file, said of `it`."""


class Refused(Damaged):
    """The pickle asks for what no model needs."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


class Dictionary(dict[Any, Any]):
    """A dictionary that leaves out keys which are no plain values. Weights have names of text; a tuple can be nested
    too deep to be hashed, and large numbers can be chosen so that all have one hash."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str | bytes | float | None) or (isinstance(key, int) and abs(key) < 1 << 60):
            super().__setitem__(key, value)


@dataclass(eq=False, repr=False)
class Made:
    """What a pickle would have made by a call of `kind`, and the state and items that it would have put into it."""

    kind: object
    args: tuple[Any, ...] = ()
    state: Any = None
    items: Dictionary = field(default_factory=Dictionary)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def extend(self, values: object) -> None:
        """Lists of a class of their own hold no weights."""

    append = extend


def name_of(module: str, name: str) -> Name:
    """A class or function by its name; raises Refused where no model needs one of that name."""
    found = Name(module, name)
    root = module[:LONGEST_NAME].split(".")[0]
    hostile = root in HOSTILE and not (root in ("builtins", "__builtin__") and name in HARMLESS)
    if hostile or max(len(module), len(name)) > LONGEST_NAME:
        raise Refused(f"it asks for {found}, which no model needs: {NOT_RUN}")
    return found


def shown(text: str) -> str:
    """A stranger's text as a message may show it: short, and without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:100])
