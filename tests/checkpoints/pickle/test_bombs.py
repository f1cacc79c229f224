"""Pickles of a few bytes that would take all memory, or time without end, are refused at once."""

import importlib.util
import struct
import time
from pathlib import Path

import pytest
import torch

from lit_merge import MergeError
from lit_merge.checkpoints import open_checkpoint
from lit_merge.checkpoints.pickle import state_dict

_spec = importlib.util.spec_from_file_location("torch_files", Path(__file__).with_name("torch_files.py"))
assert _spec is not None
assert _spec.loader is not None
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def refused(path: Path, said: str) -> None:
    with pytest.raises(MergeError) as caught:
        open_checkpoint(path)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400 + len(str(path))
    assert str(path) in line
    assert said in line


def nested(depth: int) -> bytes:
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


def in_circles() -> bytes:
    """A module whose child is itself."""
    return (
        b"\x80\x02cm\nM\n)\x81q\x00}("
        + short("_parameters")
        + b"}"
        + short("_modules")
        + b"}"
        + short("a")
        + b"h\x00sub."
    )


def doubling(levels: int) -> bytes:
    """Modules each of which holds the next one twice."""
    body = b"N"
    for _ in range(levels):
        names = b"}(" + short("a") + b"h\x01" + short("b") + b"h\x01u"
        body += b"q\x01cm\nM\n)\x81}(" + short("_parameters") + b"}" + short("_modules") + names + b"ub"
    return b"\x80\x02" + body + b"."


LARGE = "\x8a\x08" + "\xff" * 7 + "\x3f"
HUGE = "\x8b\x00\x20\x00\x00" + "\x01" * 0x2000


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (files.state_dict(files.tensor(size=f"{LARGE}\x85")), "beyond its storage"),
        (files.state_dict(files.tensor(size=f"{HUGE}\x85")), "impossible shape"),
        (files.state_dict(files.tensor(size="J\xff\xff\xff\xff\x85")), "impossible shape"),
        (files.state_dict(files.tensor(size=f"K\x00{LARGE}{LARGE}\x87")), "impossible shape"),
        (files.state_dict(files.tensor(offset="K\x01")), "beyond its storage"),
        (files.state_dict(files.tensor(offset=HUGE)), "impossible shape"),
        (files.state_dict(files.tensor(numel=HUGE)), "a size"),
        (files.state_dict(files.tensor(numel=LARGE)), "lacks values of w"),
        (files.state_dict(files.tensor(size="K\x03\x85", numel="K\x03")), "lacks values of w"),
        (
            files.state_dict(files.tensor(size=f"{LARGE}\x85").replace(b"K\x01\x85\x89", b"K\x00\x85\x89")),
            "larger than",
        ),
        (files.state_dict(files.tensor(key="X\x01\x00\x00\x001")), "lacks values of w"),
        (nested(10_000), "no weights"),
        (in_circles(), "without end"),
        (doubling(60), "without end"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\x80\x02B\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"", "damaged"),
    ],
)
def test_sizes_and_shapes_that_would_exhaust_memory(
    pickled: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_dict, "MOST_NAMES", 2000)  # sooner: types are checked at every step here
    path = files.write_zip(tmp_path / "model.pt", pickled, {"0": struct.pack("<2f", 0, 1)})
    refused(path, said)


def many(count: int, tensor: bytes) -> bytes:
    """A state dict of so many names."""
    return b"\x80\x02}(" + b"".join(long_text(f"w{i}") + tensor for i in range(count)) + b"u."


@pytest.mark.parametrize(
    ("tensor", "values"),
    [
        (files.tensor(size="J\x00\x00\x40\x00\x85").replace(b"K\x01\x85\x89", b"K\x00\x85\x89"), 2),
        (files.tensor(size="J\x00\x00\x01\x00\x85", numel="J\x00\x00\x01\x00"), 2**16),
    ],
    ids=["expanded", "one storage under many names"],
)
def test_small_files_that_stand_for_much(tensor: bytes, values: int, tmp_path: Path) -> None:
    path = files.write_zip(tmp_path / "model.pt", many(100, tensor), {"0": bytes(4 * values)})
    refused(path, f"bytes, and the file has {path.stat().st_size:,}")


def test_as_many_names_of_one_tensor_as_a_model_has(tmp_path: Path) -> None:
    layer = torch.randn(300, 300)
    torch.save({f"layers.{i}.weight": layer for i in range(48)}, tmp_path / "model.pt")
    assert torch.equal(open_checkpoint(tmp_path / "model.pt").read("layers.47.weight"), layer)


def long_text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def entry(name: str, value: bytes) -> bytes:
    return short(name) + value


def one_hash(index: int) -> bytes:
    """A number that Python hashes as all others of these."""
    return b"\x8a\x0c" + (index * (2**61 - 1)).to_bytes(12, "little")


MANY = 20_000
LONG_TUPLE = b"(" + b"N" * (10 * MANY) + b"tq\x000cm\nf\nq\x010"
# A tuple of a tuple twice, and so on: hashed, compared or written out it would be 2 ** 60 values.
DOUBLE = b")" + b"2\x86" * 60
MODULE = b"cm\nM\n)\x81"
WEIGHTS = entry("w", files.tensor())


def module(parameters: bytes, *more: bytes) -> bytes:
    parts = entry("_parameters", parameters) + entry("_modules", b"}") + b"".join(more)
    return MODULE + b"}(" + parts + b"ub"


def names(count: int, value: bytes, prefix: str = "") -> bytes:
    return b"}(" + b"".join(entry(f"{prefix}{i}", value) for i in range(count)) + b"u"


# Each takes minutes, or more memory than there is, where values are copied, hashed or looked at again and again.
BOMBS: dict[str, tuple[bytes, str]] = {
    "a long tuple, called with again and again": (
        LONG_TUPLE + b"h\x01h\x00R0" * MANY + b"N.",
        "no weights",
    ),
    "a long tuple, made with again and again": (
        LONG_TUPLE + b"h\x01h\x00\x810" * MANY + b"N.",
        "no weights",
    ),
    "a long text for arguments": (b"cm\nf\n" + long_text("x" * MANY) + b"R.", "calls something without arguments"),
    "a long list as a dictionary, again and again": (
        b"](" + b"))\x86" * MANY + b"eq\x000ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R0" * MANY + b"N.",
        "no weights",
    ),
    "keys of one hash": (b"}(" + b"".join(one_hash(i) + b"N" for i in range(MANY)) + b"u.", "an empty dictionary"),
    "a double key": (b"}" + DOUBLE + b"Ns.", "an empty dictionary"),
    "a double key of a pair": (b"ccollections\nOrderedDict\n]" + DOUBLE + b"N\x86a\x85R.", "an empty dictionary"),
    "a double set": (b"\x8f(" + DOUBLE + b"\x90.", "a list"),
    "a double frozen set": (b"(" + DOUBLE + b"\x91.", "a list"),
    "a double class": (DOUBLE + b")R.", "an unknown object"),
    "a double new class": (DOUBLE + b")\x81.", "an unknown object"),
    "a double name": (DOUBLE + b"2\x93.", "damaged"),
    "a double storage": (DOUBLE + b"Q.", "no storage"),
    "a double state": (b"cm\nM\n)\x81" + DOUBLE + b"b.", "what m.M makes"),
    "a double shape": (files.tensor(size=(DOUBLE + b"\x85").decode("latin-1")) + b".", "impossible shape"),
    "far in the memory": (b"Nr\xff\xff\xff\xff.", "no weights"),
    "a long array of bytes": (b"\x96" + b"\xff" * 7 + b"\x0f.", "damaged"),
    "a long frame": (b"\x95" + b"\xff" * 8 + b"N.", "no weights"),
    "a tensor of a type of a type": (
        b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00" + b"(h\x00N" * MANY + b")" + b"Nt" * MANY + b"R.",
        "damaged",
    ),
    "long names, again and again": (
        long_text("a." * MANY) + b"q\x000" + b"h\x00h\x00\x930" * MANY + b"N.",
        "which no model needs",
    ),
    "buffers that are not kept": (
        module(
            b"}",
            entry("_buffers", names(MANY, b"N")),
            entry("_non_persistent_buffers_set", b"](" + b"".join(short(f"x{i}") for i in range(MANY)) + b"e"),
        )
        + b".",
        "without a single weight",
    ),
    "a large module in many places": (
        module(names(MANY, b"N"))
        + b"q\x00"
        + MODULE
        + b"}("
        + entry("_parameters", b"}")
        + entry("_modules", names(MANY, b"h\x00"))
        + b"ub.",
        "without a single weight",
    ),
    "a large dictionary in many places": (
        names(MANY, b"N") + b"q\x000" + names(MANY, b"h\x00")[:-1] + WEIGHTS + b"u.",
        "is a dictionary of 0, 1, 2",
    ),
    "a name like that of an average": (
        b"}" + long_text("ema_" * 5 * MANY + "!") + b"}" + WEIGHTS + b"ss.",
        "no weights",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(name: str, tmp_path: Path) -> None:
    pickled, said = BOMBS[name]
    path = files.write_zip(tmp_path / "model.pt", b"\x80\x04" + pickled, {"0": struct.pack("<2f", 0, 1)})
    started = time.process_time()
    refused(path, said)
    assert time.process_time() - started < 5
