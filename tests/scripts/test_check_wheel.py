"""scripts/check_wheel.py, which `.ci/run` runs whole: what it says of wheels with other content."""

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "scripts" / "check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel(folder: Path, names: set[str]) -> Path:
    path = folder / "lit_merge-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "")
    return path


def test_content(script: Any, tmp_path: Path) -> None:
    whole = script.expected() | {"lit_merge-0.dist-info/METADATA"}
    assert {"lit_merge/py.typed", "lit_merge/__init__.pyi", "lit_merge/zoo/suite8/experts/mnist.safetensors"} <= whole
    script.check_content(wheel(tmp_path, whole))
    for names, said in (
        (whole - {"lit_merge/configs/quickstart.yaml"}, "lacks lit_merge/configs/quickstart.yaml"),
        (whole - {"lit_merge/cli/init.py"}, "lacks lit_merge/cli/init.py"),
        (whole | {"tests/conftest.py"}, "holds tests/conftest.py"),
        (whole | {"lit_merge/notes.txt"}, "holds lit_merge/notes.txt"),
    ):
        with pytest.raises(SystemExit, match=said):
            script.check_content(wheel(tmp_path, names))
