"""Pickles that would run code run none here, and are refused in one line."""

import codecs
import copyreg
import importlib
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_merge import MergeError
from lit_merge.checkpoints import open_checkpoint

_spec = importlib.util.spec_from_file_location("torch_files", Path(__file__).with_name("torch_files.py"))
assert _spec is not None
assert _spec.loader is not None
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)

MODULE = """
import pathlib
MARKER = pathlib.Path({marker!r})
if {on_import}: MARKER.touch()
def run(*args, **options): MARKER.touch()
class Evil:
    def __new__(cls, *args, **options): MARKER.touch(); return super().__new__(cls)
    def __init__(self, *args, **options): MARKER.touch()
    def __setstate__(self, state): MARKER.touch()
    def __setattr__(self, name, value): MARKER.touch()
    def __setitem__(self, key, value): MARKER.touch()
    def append(self, value): MARKER.touch()
    def extend(self, values): MARKER.touch()
    def __hash__(self): MARKER.touch(); return 0
    def __del__(self): MARKER.touch()
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that hostile code would make, by a shell, or by the module `evil_module`, which can be imported."""
    path = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(MODULE.format(marker=str(path), on_import=False))
    (tmp_path / "evil_import.py").write_text(MODULE.format(marker=str(path), on_import=True))
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    for name in ("evil_module", "evil_import"):
        sys.modules.pop(name, None)


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def call(module: str, name: str, *args: str) -> bytes:
    """Opcodes of module.name(*args), by GLOBAL and REDUCE."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(short, args)) + b"tR"


Payload = Callable[[Path], bytes]
TOUCH = "touch {}"
# What Python's own unpickler runs: the test below checks that it does.
RUNS: dict[str, Payload] = {
    "reduce os.system": lambda m: b"\x80\x04" + call("os", "system", TOUCH.format(m)) + b".",
    "reduce posix.system": lambda m: b"\x80\x04" + call("posix", "system", TOUCH.format(m)) + b".",
    "protocol 0": lambda m: f"cos\nsystem\n(V{TOUCH.format(m)}\ntR.".encode(),
    "builtins.eval": lambda m: b"\x80\x04" + call("builtins", "eval", f"open({str(m)!r}, 'w').close()") + b".",
    "python 2's exec": lambda m: b"\x80\x02" + call("__builtin__", "exec", f"open({str(m)!r}, 'w').close()") + b".",
    "builtins.open": lambda m: b"\x80\x04" + call("builtins", "open", str(m), "w") + b".",
    "getattr": lambda m: (
        b"\x80\x04cbuiltins\ngetattr\n(cos\nsystem\n" + short("__call__") + b"tR(" + short(TOUCH.format(m)) + b"tR."
    ),
    "stack global": lambda m: b"\x80\x04" + short("os") + short("system") + b"\x93(" + short(TOUCH.format(m)) + b"tR.",
    "dotted stack global": lambda m: (
        b"\x80\x04" + short("torch") + short("os.system") + b"\x93(" + short(TOUCH.format(m)) + b"tR."
    ),
    "inst": lambda m: f"(S'{TOUCH.format(m)}'\nios\nsystem\n.".encode(),
    "obj": lambda m: b"(cos\nsystem\n" + short(TOUCH.format(m)) + b"o.",
    "inst of a class": lambda m: b"(ievil_module\nEvil\n.",
    "newobj": lambda m: b"\x80\x04cevil_module\nEvil\n)\x81.",
    "newobj_ex": lambda m: b"\x80\x04cevil_module\nEvil\n)}" + short("a") + b"K\x01s\x92.",
    "setstate": lambda m: b"\x80\x04cevil_module\nEvil\n)\x81}b.",
    "slots": lambda m: b"\x80\x04ccopyreg\n__newobj__\n(cevil_module\nEvil\ntRN}" + short("a") + b"K\x01s\x86b.",
    "setitem": lambda m: b"\x80\x04cevil_module\nEvil\n)\x81K\x01K\x02s.",
    "append": lambda m: b"\x80\x04cevil_module\nEvil\n)\x81K\x01a.",
    "a key's hash": lambda m: b"\x80\x04}cevil_module\nEvil\n)\x81K\x02s.",
    "import": lambda m: b"\x80\x04cevil_import\nrun\n.",
    "extension": lambda m: b"\x80\x02\x82\xf1(" + short(TOUCH.format(m)) + b"tR.",
    "inside a dictionary": lambda m: b"\x80\x04}" + short("hook") + call("os", "system", TOUCH.format(m)) + b"s.",
    "module changed": lambda m: (
        b"\x80\x04" + call("importlib", "import_module", "evil_import") + b"}" + short("run") + b"K\x01sb."
    ),
}


@pytest.fixture
def extension() -> Iterator[None]:
    copyreg.add_extension("os", "system", 0xF1)
    yield
    copyreg.remove_extension("os", "system", 0xF1)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore")
def test_what_pickle_runs_is_refused(name: str, marker: Path, tmp_path: Path, extension: None) -> None:
    pickled = RUNS[name](marker)
    for write in (files.write_zip, files.write_legacy):
        refused(write(tmp_path / "model.pt", pickled))
        assert not marker.exists()
        assert not {"evil_module", "evil_import"} & set(sys.modules)
    (tmp_path / "plain.pkl").write_bytes(pickled)
    refused(tmp_path / "plain.pkl")
    assert not marker.exists()
    try:  # The payload is a real one.
        pickle.loads(pickled)
    except Exception:
        assert marker.exists()
    assert marker.exists()


def refused(path: Path, *said: str) -> None:
    with pytest.raises(MergeError) as caught:
        open_checkpoint(path)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400 + len(str(path))
    for text in (str(path), *said):
        assert text in line


@pytest.mark.parametrize("name", ["reduce os.system", "builtins.eval", "getattr", "stack global", "extension", "inst"])
def test_the_line_says_what_was_asked_for(name: str, marker: Path, tmp_path: Path) -> None:
    refused(files.write_zip(tmp_path / "model.pt", RUNS[name](marker)), "hostile", "nothing of it was run")


def test_hostile_parts_beside_real_weights(marker: Path, tmp_path: Path) -> None:
    torch.save({"w": torch.arange(2.0)}, tmp_path / "real.pt")
    hook = short("hook") + b"cevil_import\nrun\n)R" + b"s"
    inner = b"}" + short("w") + files.tensor() + b"s"
    pickled = b"\x80\x04}" + short("state_dict") + inner + b"s" + hook + b"."
    path = files.write_zip(tmp_path / "model.pt", pickled, {"0": struct.pack("<2f", 0, 1)})
    assert open_checkpoint(path).read("w").tolist() == [0, 1]  # inert: never imported
    hook = short("hook") + call("os", "system", TOUCH.format(marker)) + b"s"
    refused(files.write_zip(tmp_path / "model.pt", pickled[:-1] + hook + b"."), "os.system")
    assert not marker.exists()


# What Python's unpickler would not run as it stands, but a careless reader of tensors might.
TRICKS: dict[str, Payload] = {
    "a storage's class": lambda m: files.state_dict(
        files.tensor().replace(b"ctorch\nFloatStorage\n", b"cevil_import\nEvil\n")
    ),
    "a storage's class is a call": lambda m: files.state_dict(
        files.tensor().replace(b"ctorch\nFloatStorage\n", call("evil_import", "run"))
    ),
    "dotted storage": lambda m: files.state_dict(
        files.tensor().replace(b"FloatStorage", b"FloatStorage.__init__.__globals__")
    ),
    "persistent id of text": lambda m: b"\x80\x02Pevil\n.",
    "persistent id of no tuple": lambda m: b"\x80\x02" + short("os.system") + b"Q.",
    "module's source": lambda m: (
        b"\x80\x02(" + short("module") + b"cos\nsystem\n" + short("/etc/passwd") + short("x") + b"tQ."
    ),
    "nested pickle as a key": lambda m: files.state_dict(
        files.tensor(key="C\x04cos\n"),
    ),
    "nested pickle of bytes": lambda m: (
        b"\x80\x04ctorch.storage\n_load_from_bytes\n(C"
        + bytes([len(RUNS["protocol 0"](m))])
        + RUNS["protocol 0"](m)
        + b"tR."
    ),
    "path as a key": lambda m: files.state_dict(files.tensor(key="X\x0b\x00\x00\x00/etc/passwd")),
    "tensor of a type": lambda m: (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cevil_import\nrun\ncevil_import\nEvil\n)}tR."
    ),
    "torch.load": lambda m: b"\x80\x04" + call("torch", "load", str(m)) + b".",
    "torch.hub": lambda m: b"\x80\x04" + call("torch.hub", "load", str(m)) + b".",
    "its own class": lambda m: b"\x80\x04cevil_import\nEvil\n)\x81}" + short("__class__") + b"cevil_import\nEvil\nsb.",
    "a function's globals": lambda m: b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n}" + short("a") + b"K\x01sb.",
    "a dtype of torch's making": lambda m: files.state_dict(
        files.tensor().replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3").replace(b")RtR", b")Rctorch\nonnx\ntR")
    ),
    "buffers out of band": lambda m: b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", TRICKS)
def test_tricks(name: str, marker: Path, tmp_path: Path) -> None:
    pickled = TRICKS[name](marker)
    for write in (files.write_zip, files.write_legacy):
        refused(write(tmp_path / "model.pt", pickled))
    assert not marker.exists()
    assert not {"evil_module", "evil_import"} & set(sys.modules)


def test_zip_files_that_are_not_torchs(marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    good = files.state_dict(files.tensor())
    values = {"0": struct.pack("<2f", 0, 1)}
    refused(files.write_zip(path, good, values, zipfile.ZIP_DEFLATED), "compressed")
    for names, said in (
        (["archive/data.pkl", "archive/data.pkl"], "two entries"),
        (["archive/data.pkl", "../../data.pkl"], "does not hold exactly one data.pkl"),
        (["other/file"], "does not hold exactly one data.pkl"),
    ):
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, good)
        refused(path, said)
    outside = tmp_path / "outside"
    files.write_zip(
        path, files.state_dict(files.tensor(key="X\x0d\x00\x00\x00../../outside")), {"../../outside": b"x" * 8}
    )
    assert open_checkpoint(path).shapes == {"w": (2,)}
    assert not outside.exists()  # a name of an entry is no path: nothing is unpacked
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".py") == ["model.pt"]
    content = bytearray(files.write_zip(path, good, values).read_bytes())
    content[0:4] = b"PK\x03\x04"
    middle = content.index(b"archive/data/0") - 30
    content[middle : middle + 4] = b"junk"  # an entry whose own header is not there
    path.write_bytes(content)
    refused(path, "damaged")


def test_opening_leaves_python_as_it_was(tmp_path: Path, marker: Path) -> None:
    before = {name: dict(vars(torch._utils)) for name in ("torch._utils",)}
    for payload in (*RUNS.values(), *TRICKS.values()):
        with pytest.raises(MergeError):
            open_checkpoint(files.write_zip(tmp_path / "model.pt", payload(marker)))
    assert before["torch._utils"] == dict(vars(torch._utils))
    assert not marker.exists()
    assert os.path.exists(tmp_path / "model.pt")


class Auditor:
    """Counts what Python reports of itself: imports, code that is run, processes, files that are opened, …"""

    def __init__(self) -> None:
        self.listening, self.counts = False, Counter[tuple[str, str]]()
        # Python has no way to take one out again.
        sys.addaudithook(lambda event, args: self.count(event, args) if self.listening else None)

    def count(self, event: str, args: tuple[Any, ...]) -> None:
        self.counts[event, str(args[0]) if event in ("open", "import") else ""] += 1

    def during(self, action: Callable[[], object]) -> Counter[tuple[str, str]]:
        self.counts.clear()
        self.listening = True
        try:
            action()
        except Exception:
            pass
        finally:
            self.listening = False
        return self.counts.copy()


@pytest.mark.filterwarnings("ignore")
def test_nothing_that_a_pickle_names_is_imported_or_called(
    marker: Path, tmp_path: Path, extension: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, auditor, asked = tmp_path / "model.pt", Auditor(), list[str]()
    monkeypatch.setattr(torch, "__getattr__", asked.append)  # which imports modules by their names
    for encoding in ("cp437", "raw-unicode-escape"):  # which Python imports where they are first met
        codecs.lookup(encoding)
    for pickled in (payload(marker) for payload in (*RUNS.values(), *TRICKS.values())):
        for write in (files.write_zip, files.write_legacy):
            write(path, pickled)
            counts = auditor.during(lambda: open_checkpoint(path))
            assert counts["open", str(path)] > 0
            assert set(counts) <= {("open", str(path)), ("mmap.__new__", "")}
    assert asked == []
    assert not marker.exists()
    # The auditor does count: each of these calls something, or imports it, where Python reads them.
    for payload in RUNS.values():
        assert len(auditor.during(lambda payload=payload: pickle.loads(payload(marker)))) > 0
