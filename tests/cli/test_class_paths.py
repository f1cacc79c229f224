"""A class_path runs the code of a module only for a class that is wanted."""

import sys
from pathlib import Path

import pytest

from lit_merge import CART, MergeMethod
from lit_merge.cli.class_paths import why_not
from lit_merge.cli.main import main
from lit_merge.networks import Network

MODULES = {
    "strange.py": """
class Thing: ...
class Sub(Thing, dict): ...
def make() -> "Thing": ...
import os as CART
""",
    "known.py": """
import lit_merge.methods.base as base
import lit_merge
from lit_merge import CART as Own
from lit_merge.networks import Network as Other
try:
    class Deep(Own): ...
except ImportError:
    pass
class Deeper(Deep): ...
class Dotted(base.MergeMethod): ...
class Public(lit_merge.MergeMethod, dict): ...
class NoMethod(Other): ...
made = type("made", (Own,), {})
class Computed(type("x", (Own,), {})): ...
""",
    "package/__init__.py": "from .inner import Mine, Thing as No",
    "package/inner.py": "from known import Deep\nfrom . import other\nclass Mine(Deep): ...\nclass Thing: ...\n"
    "class Through(other.Again): ...",
    "package/other.py": "from known import *\nfrom known import Deep as Again",
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Modules that say by a file that they were run."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n{text}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        *((f"strange.{name}", "no subclass of MergeMethod") for name in ("Thing", "Sub", "make", "CART", "nothing")),
        ("known.NoMethod", "no subclass of MergeMethod"),
        ("package.No", "no subclass of MergeMethod"),
        ("antigravity.x", "of Python's own library"),
        ("os.system", "it is a function"),
        *((f"known.{name}", None) for name in ("Deep", "Deeper", "Dotted", "Public", "made", "Computed")),
        *((f"package.{name}", None) for name in ("Mine", "inner.Mine", "inner.Through", "other.anything")),
        ("nowhere.Mine", None),  # importing it says so
        ("lit_merge.CART", None),
    ],
)
def test_what_the_source_tells(path: str, reason: str | None, modules: Path) -> None:
    found = why_not(path, (MergeMethod,))
    assert found is None if reason is None else reason in str(found)
    assert not (modules / "ran").exists()


def test_of_several_wanted_classes_one_is_enough() -> None:
    assert why_not("known.NoMethod", (MergeMethod, Network)) is None
    assert issubclass(CART, MergeMethod)


def test_the_command_line_runs_nothing_that_is_not_wanted(modules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (modules / "c.yaml").write_text("model:\n  experts: {a: a.safetensors}\n  method: {class_path: strange.Thing}\n")
    for arguments in (["--config", "c.yaml"], ["--model.experts.a", "a", "--model.method", "antigravity.x"]):
        assert main(["merge", *arguments, "--output", "out.safetensors"]) == 2
        line = capsys.readouterr().err
        assert line.startswith("lit_merge: error: class_path ")
        assert "expected a subclass of MergeMethod" in line or "no subclass of MergeMethod" in line
        assert line.count("\n") == 1
        assert not (modules / "ran").exists()
        assert not {"strange", "antigravity"} & sys.modules.keys()
    method = ["--model.method", "package.inner.Mine"]
    assert main(["merge", "--model.experts.a", "a.safetensors", *method, "--output", "out.safetensors"]) == 2
    assert "expert a: a.safetensors: no such file" in capsys.readouterr().err
    assert (modules / "ran").exists()
