"""Pickles read without running them: Python's own unpickler, in which nothing can be imported or called.

A pickle is a list of opcodes, some of which call what the pickle names. Here a name is a `Name`, which is never looked
up; an object is a `Made`, which remembers what it would have been made of; the few names that make tensors and
containers stand for code of this package. So classes need not be installed, and hostile ones are never met.

This is the unpickler that Python keeps in Python. The one in C hashes whatever is a key, copies the arguments of each
call and makes room for as many remembered values as a pickle claims: a few bytes can crash it or fill the memory.
"""

import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

from lit_merge.checkpoints.pickle.stand_ins import NOT_RUN, Damaged, Dictionary, Made, Name, Refused, name_of
from lit_merge.checkpoints.pickle.tensor_records import Storage, make_storage, rebuild

# What torch.save writes, and wrote under Python 2: all but the opcodes of protocol 0, which cannot name a tensor, and
# those that call or take an object from elsewhere.
ALLOWED = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT"),
    *("BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINBYTES"),
    *("SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_TUPLE"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM"),
    *("SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "BINPERSID"),
}


def read_pickle(file: BinaryIO) -> tuple[Any, dict[str, Storage], set[Name]]:
    """The value of the pickle that begins here, the storages that its tensors name, by key, and the classes and
    functions that it names.

    Lists and tuples are Python's, dictionaries are `Dictionary`s, sets are lists, tensors are `TensorRecord`s; all else
    is inert. The file stands behind the pickle afterwards.

    Raises:
        Refused: it names what no model needs, or has opcodes that torch.save does not write.
        Damaged: no pickle.
    """
    start = file.tell()
    try:
        for opcode, _, _ in pickletools.genops(file):
            if opcode.name not in ALLOWED:
                raise Refused(f"it has the opcode {opcode.name}, which torch.save writes for no model: {NOT_RUN}")
        file.seek(start)
        unpickler = SafeUnpickler(file)
        return unpickler.load(), unpickler.storages, unpickler.names
    except Damaged:
        raise
    # Nothing of the file's is run, so whatever goes wrong is that the file is no whole pickle.
    except Exception as error:
        raise Damaged(f"its pickle is damaged ({type(error).__name__})") from error


def make(kind: Any, args: tuple[Any, ...]) -> Any:
    """What stands for `kind(*args)`: a container, a record of a tensor, or something inert."""
    if not isinstance(kind, Name):
        return Made(kind, args)
    if kind in CONTAINERS:
        return CONTAINERS[kind](args)
    if kind == WITH_ATTRIBUTES and len(args) == 4 and isinstance(args[2], tuple):
        return make(args[0], args[2])
    tensor = rebuild(kind, args)
    return Made(kind, args) if tensor is None else tensor


def _dictionary(args: tuple[Any, ...]) -> Dictionary:
    pairs = args[0] if args and isinstance(args[0], list) else []
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise Damaged("its pickle has a dictionary of no pairs")
    made = Dictionary()
    for key, value in pairs:
        made[key] = value
    # A short pickle could copy a long list again and again.
    pairs.clear()
    return made


def _sequence(args: tuple[Any, ...]) -> Any:
    return args[0] if args and isinstance(args[0], list | tuple) else []


CONTAINERS: dict[Name, Callable[[tuple[Any, ...]], Any]] = {
    Name("collections", "OrderedDict"): _dictionary,
    Name("collections", "defaultdict"): lambda args: Dictionary(),
    Name("torch", "Size"): _sequence,
    **{Name(module, name): _sequence for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
}
# Of a tensor with attributes of its own, which are no weights.
WITH_ATTRIBUTES = Name("torch._tensor", "_rebuild_from_type_v2")
_PYTHONS = pickle._Unpickler.dispatch
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class SafeUnpickler(pickle._Unpickler):
    """Python's unpickler with the opcodes of `ALLOWED`, those that would import, call or hash done in another way.

    Args:
        file: stands at the beginning of a pickle.

    Attributes:
        storages: those that were met, by key.
        names: of classes and functions, likewise.
    """

    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, file: BinaryIO) -> None:
        # Texts of Python 2 may be any bytes.
        super().__init__(file, encoding="latin-1")
        self.storages: dict[str, Storage] = {}
        self.names: set[Name] = set()

    def find_class(self, module: str, name: str) -> Name:
        found = name_of(module, name)
        self.names.add(found)
        return found

    def persistent_load(self, pid: Any) -> Any:
        # Files of the old format keep source code with a module's class.
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] in ("module", b"module"):
            return pid[1]
        storage = make_storage(pid)
        return self.storages.setdefault(storage.key, storage)

    def load_reduce(self) -> None:
        # Arguments stay the tuple that they are: unpacked, one long tuple could be copied again and again.
        args, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple):
            raise Damaged("its pickle calls something without arguments")
        self.append(make(kind, args))

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self.load_reduce()

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Made):
            made.state = state
        elif isinstance(made, Name):
            raise Refused(f"it changes {made} itself: {NOT_RUN}")
        # Attributes of dictionaries (`_metadata` of a state dict) and of tensors are no weights.

    dispatch: ClassVar[dict[int, Callable[..., Any]]] = {
        **{code: load for code, load in _PYTHONS.items() if NAMES[code] in ALLOWED},
        pickle.FRAME[0]: lambda self: self.read(8),
        pickle.EMPTY_DICT[0]: lambda self: self.append(Dictionary()),
        pickle.EMPTY_SET[0]: _PYTHONS[pickle.EMPTY_LIST[0]],
        pickle.FROZENSET[0]: _PYTHONS[pickle.LIST[0]],
        pickle.ADDITEMS[0]: _PYTHONS[pickle.APPENDS[0]],
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_reduce,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
    }
