"""Imports go one way, and `import lit_merge` waits for nothing heavy."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lit_merge"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
# From the ground up: a module imports only from its own row, where that is a folder, and from rows before it.
LAYERS = [
    ["errors", "gram", "progress", "parse_errors", "sharpness", "random_state", "mixed", "weight_names", "on_demand"],
    ["weighted_sums", "compiling", "finite"],
    ["hub", "class_names", "processes", "configuration"],
    ["locations", "quiet", "linalg", "supervision"],
    ["checkpoints"],
    ["optional_weights"],
    ["alignment", "expert_files"],
    ["low_rank", "ranks", "matrices", "objectives", "bank_files", "prediction_files", "conversion"],
    ["deltas"],
    ["task_bank", "decompositions", "inspection"],
    ["stored_bank", "weights"],
    ["experts"],
    ["weight_stream"],
    ["layout"],
    ["transforms", "coefficients", "rank_masks", "analysis", "moments"],
    ["methods"],
    ["bank_parts"],
    ["streaming"],
    ["networks", "data"],
    ["probe", "evaluation", "activations", "adaptation_step", "fit_state", "stages"],
    ["merging"],
    ["merged_model", "choosing"],
    ["unlabelled"],
    ["sources"],
    ["merged_files"],
    ["recipe", "export", "report", "fit_plan", "unfinished"],
    ["built_banks"],
    ["figures", "heat_map"],
    ["sweep", "callbacks", "dry_run"],
    ["trainer", "merge_verb", "together"],
    ["adapting"],
    ["run_logs"],
    ["runs"],
    ["cli", "zoo"],
    ["command"],
    ["__main__"],
]
ROW = {name: i for i, row in enumerate(LAYERS) for name in row}


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


def area(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_its_layer() -> None:
    assert {area(module) for module in MODULES if module != "lit_merge"} == set(ROW)


def test_imports_go_down_only() -> None:
    for module, path in MODULES.items():
        if module == "lit_merge":  # loads its public names lazily, from everywhere
            continue
        for other in imported(path):
            same = area(other) == area(module)
            assert same or ROW[area(other)] < ROW[area(module)], f"{module} imports {other}"


def test_no_circle() -> None:
    graph = {module: imported(path) for module, path in MODULES.items() if not path.name.startswith("__init__")}
    TopologicalSorter(graph).prepare()


def test_importing_the_package_loads_no_torch() -> None:
    program = (
        "import sys, lit_merge; sys.exit(bool({'torch', 'lightning', 'open_clip', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_public_names_exist() -> None:
    import lit_merge

    for name in lit_merge.__all__:
        assert getattr(lit_merge, name).__name__ == name
