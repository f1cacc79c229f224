"""What stands for a pickle's classes, functions and objects: values that do nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lit_merge.checkpoints.pickle.tensors import Damaged, rebuild

NOT_RUN = "the file may be hostile; nothing of it was run"
# Nothing is ever called, so these could stand in a file unharmed; but no model names them, and who reads the line
# should know what was tried.
HOSTILE = {
    *(
        "os",
        "posix",
        "nt",
        "posixpath",
        "ntpath",
        "subprocess",
        "sys",
        "importlib",
        "runpy",
        "shutil",
        "socket",
        "ctypes",
    ),
    *(
        "pickle",
        "_pickle",
        "marshal",
        "codeop",
        "pty",
        "pdb",
        "bdb",
        "timeit",
        "cProfile",
        "webbrowser",
        "urllib",
        "http",
    ),
    *(
        "ftplib",
        "smtplib",
        "asyncio",
        "multiprocessing",
        "threading",
        "signal",
        "pip",
        "ensurepip",
        "pkgutil",
        "zipimport",
    ),
    *("linecache", "doctest", "gc", "operator", "_operator", "tempfile", "io", "_io", "builtins", "__builtin__"),
}
HARMLESS = {
    *("set", "frozenset", "list", "tuple", "dict", "int", "float", "complex", "bool", "str", "bytes", "bytearray"),
    *("object", "type", "slice", "range", "print", "len", "sum", "min", "max", "abs", "round", "sorted", "NoneType"),
    *("NotImplemented", "Ellipsis", "unicode", "long"),
}
KEYS = (str, int, float, bytes, bool, type(None))


class Refused(Damaged):
    """The pickle asks for what no model needs."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")


@dataclass(eq=False, repr=False)
class Made:
    """What a pickle would have made by calling something."""

    kind: object
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


def shown(text: str) -> str:
    """A stranger's text as a message may show it: short, and without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:100])


def name_of(module: Any, name: Any) -> Name:
    """A class or function by its name.

    Raises:
        Refused: one that no model needs, or no name.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise Refused(f"it names a class by something that is no text: {NOT_RUN}")
    found = Name(module, name)
    root = module.split(".")[0]
    if root in HOSTILE and not (root in ("builtins", "__builtin__") and name in HARMLESS):
        raise Refused(f"it asks for {found}, which no model needs: {NOT_RUN}")
    return found


def make(kind: Any, args: tuple[Any, ...]) -> Any:
    """What stands for `kind(*args)`: a container, a record of a tensor, or something inert."""
    if isinstance(kind, Name):
        name = (kind.module, kind.name)
        if name in CONTAINERS:
            return CONTAINERS[name](args)
        if name == ("torch._tensor", "_rebuild_from_type_v2") and len(args) == 4 and isinstance(args[2], tuple):
            # A tensor with attributes of its own, which are no weights.
            return make(args[0], args[2])
        dtype = args[6] if len(args) > 6 and isinstance(args[6], Name) else None
        if (tensor := rebuild(name, args, None if dtype is None else dtype.name)) is not None:
            return tensor
    return Made(kind, args)


def _dictionary(args: tuple[Any, ...]) -> dict[Any, Any]:
    pairs = args[0] if args and isinstance(args[0], list) else []
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise Damaged("its pickle has a dictionary of no pairs")
    made = {pair[0]: pair[1] for pair in pairs if isinstance(pair[0], KEYS)}
    # A short pickle could copy a long list again and again.
    pairs.clear()
    return made


def _sequence(args: tuple[Any, ...]) -> Any:
    return args[0] if args and isinstance(args[0], list | tuple) else []


CONTAINERS: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "defaultdict"): lambda args: {},
    ("builtins", "set"): _sequence,
    ("builtins", "frozenset"): _sequence,
    ("__builtin__", "set"): _sequence,
    ("__builtin__", "frozenset"): _sequence,
    ("torch", "Size"): _sequence,
}
