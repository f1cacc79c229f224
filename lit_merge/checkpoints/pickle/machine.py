"""Pickles read without running them: a machine that builds plain values and calls nothing.

Python's unpickler calls whatever a pickle names. This one knows no callable at all: a global is a `Name`, an object is
a `Made` that remembers what it would have been made of, and the few names that make tensors and containers stand for
code of this package, told apart by exact names. Nothing is imported, so classes need not be installed, and hostile ones
are never met.
"""

import mmap
import pickletools
from collections.abc import Callable
from io import BytesIO
from typing import IO, Any, cast

from lit_merge.checkpoints.pickle.tensors import Damaged, Storage, make_storage
from lit_merge.checkpoints.pickle.values import KEYS, NOT_RUN, Made, Name, Refused, make, name_of


def read_pickle(file: BytesIO | mmap.mmap) -> tuple[Any, dict[str, Storage]]:
    """The value of the pickle that begins here, and the storages that its tensors name, by key.

    Dictionaries, lists and tuples are Python's, sets are lists, tensors are `TensorRecord`s; all else is inert. The
    file stands behind the pickle afterwards.

    Raises:
        Refused: it names what no model needs.
        Damaged: no pickle, or one of opcodes that torch.save does not write.
    """
    machine = _Machine()
    try:
        return machine.run(file), machine.storages
    except Damaged:
        raise
    # The machine runs nothing of the file's, so whatever goes wrong is that the file is no whole pickle.
    except Exception as error:
        raise Damaged(f"its pickle is damaged ({type(error).__name__})") from error


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, file: BytesIO | mmap.mmap) -> Any:
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                self.stack.append(argument)
            elif name in _OPCODES:
                _OPCODES[name](self, argument)
            else:
                raise Refused(f"it has the opcode {name}, which torch.save writes for no model: {NOT_RUN}")
        raise Damaged("its pickle has no end")

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def reduce(self, _: Any) -> None:
        args, kind = self.pop(), self.pop()
        if not isinstance(args, tuple):
            raise Damaged("its pickle calls something without arguments")
        self.push(make(kind, args))

    def new_with_options(self, _: Any) -> None:
        options, args, kind = self.pop(), self.pop(), self.pop()
        if not isinstance(args, tuple) or not isinstance(options, dict):
            raise Damaged("its pickle makes something of no arguments")
        self.push(Made(kind, args))

    def build(self, _: Any) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], Made):
            self.stack[-1].state = state
        elif isinstance(self.stack[-1], Name):
            raise Refused(f"it changes {self.stack[-1]} itself: {NOT_RUN}")
        # Attributes of dictionaries (`_metadata` of a state dict) and of tensors are no weights.

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Made) else target
        if not isinstance(items, dict) or len(pairs) % 2:
            raise Damaged("its pickle puts items where none belong")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Weights have names of text. Other keys are not hashed: a tuple can be nested too deep for that.
            if isinstance(key, KEYS):
                items[key] = value

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Made):
            raise Damaged("its pickle puts items where none belong")

    def persistent(self, _: Any) -> None:
        found = self.pop()
        # Files of the old format keep source code beside a module's class.
        if isinstance(found, tuple) and len(found) == 4 and found[0] in ("module", b"module"):
            self.push(found[1])
            return
        kind = found[1] if isinstance(found, tuple) and len(found) > 1 else None
        storage = make_storage(found, (kind.module, kind.name) if isinstance(kind, Name) else None)
        self.push(self.storages.setdefault(storage.key, storage))


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        machine.push(tuple(reversed([machine.pop() for _ in range(count)])))

    return make


def _get(machine: _Machine, index: Any) -> None:
    machine.push(machine.memo[int(index)])


def _put(machine: _Machine, index: Any) -> None:
    machine.memo[int(index)] = machine.stack[-1]


def _of_two(machine: _Machine, action: Callable[[list[Any]], None]) -> None:
    second, first = machine.pop(), machine.pop()
    action([first, second])


_OPCODES: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": _Machine.mark,
    "POP": lambda m, _: m.pop() if m.stack else m.pop_mark(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "FROZENSET": lambda m, _: m.push(m.pop_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": lambda m, _: _of_two(m, m.set_items),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda m, _: _put(m, len(m.memo)),
    "GLOBAL": lambda m, names: m.push(name_of(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: _of_two(m, lambda names: m.push(name_of(*names))),
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_options,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
