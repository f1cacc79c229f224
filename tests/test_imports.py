"""Imports go one way, and `import lit_merge` waits for nothing heavy."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lit_merge

PACKAGE = Path(__file__).parents[1] / "lit_merge"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
# From the ground up: the rooms of the package. What is in one imports from there and from rooms below, no other of the
# same floor.
FLOORS = [
    ["errors"],
    ["console", "objectives"],
    ["checkpoints"],
    ["bank", "data"],
    ["experts", "networks"],
    ["methods", "report"],
    ["merge"],
    ["choose"],
    ["adaptation"],
    ["cli"],
    ["__main__"],
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
    return {name for name in found if name in MODULES and name != "lit_merge"}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_module_is_in_a_room() -> None:
    assert {room_of(module) for module in MODULES if module != "lit_merge"} == set(FLOOR)
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert len(folders) <= 11


def test_imports_go_down_only() -> None:
    for module, path in MODULES.items():
        if module == "lit_merge":  # loads its public names lazily, from everywhere
            continue
        for other in imported(path):
            same = room_of(other) == room_of(module)
            assert same or FLOOR[room_of(other)] < FLOOR[room_of(module)], f"{module} imports {other}"


def test_no_circle() -> None:
    graph = {module: imported(path) for module, path in MODULES.items() if not path.name.startswith("__init__")}
    TopologicalSorter(graph).prepare()


def test_importing_the_package_loads_no_torch() -> None:
    program = (
        "import sys, lit_merge; sys.exit(bool({'torch', 'lightning', 'open_clip', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_public_names_exist() -> None:
    for name in lit_merge.__all__:
        assert getattr(lit_merge, name).__name__ == name


def test_heavy_libraries_wait_for_their_use() -> None:
    heavy = {"open_clip", "transformers", "torchvision", "datasets", "torchmetrics", "pyarrow"}
    for module, path in MODULES.items():
        if room_of(f"{module}.") in ("checkpoints", "bank", "data", "experts", "networks"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                assert not heavy & {name.partition(".")[0] for name in names}, f"{module} imports {names}"


def test_modules_that_have_moved() -> None:
    """A method of one's own, as earlier pages have it, goes on working, and learns where things are now."""
    from lit_merge.bank.low_rank import rank_of
    from lit_merge.bank.task_bank import TaskBank

    for name, place in lit_merge.MOVED.items():
        with pytest.warns(DeprecationWarning, match=f"lit_merge.{name} has moved to lit_merge.{place}"):
            module = importlib.import_module(f"lit_merge.{name}")
        assert module is importlib.import_module(f"lit_merge.{place}")
        assert module.__spec__ is not None
        assert module.__spec__.name == f"lit_merge.{place}"
        del sys.modules[f"lit_merge.{name}"]
    with pytest.warns(DeprecationWarning, match="lit_merge.ranks has moved"):
        from lit_merge.ranks import rank_of as moved
    assert moved is rank_of
    assert lit_merge.TaskBank is TaskBank
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lit_merge.nowhere")
