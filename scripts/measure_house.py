"""Prints the measures of the package's house: rooms, floors, lines, and the ways from a verb to a formula.

    python scripts/measure_house.py

Calls and files are read off the stack while the verbs run on the shipped suite.
"""

import argparse
import ast
import inspect
import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lit_merge"
TASKS = ("mnist", "latin", "greek")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & MODULES.keys() - {"lit_merge"}


def floors() -> dict[str, int]:
    """Room → its floor: 1 for one that imports from no other, and one above the highest that it imports from."""
    below: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if module not in ("lit_merge", "lit_merge.__main__"):
            room = module.split(".")[1]
            below.setdefault(room, set()).update(other.split(".")[1] for other in imported(path))
    found: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in found:
            found[room] = 0  # a circle would come back here
            found[room] = 1 + max((floor(other) for other in below[room] - {room}), default=0)
        return found[room]

    for room in below:
        floor(room)
    return found


def stacks(codes: set[CodeType], run: Callable[[], Any]) -> Iterator[tuple[CodeType, list[CodeType]]]:
    """For each of these functions, what of the package is on the stack the first time that it is called in `run`."""
    first: dict[CodeType, list[CodeType]] = {}

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in codes and frame.f_code not in first:
            stack, here = [], frame
            while here is not None:
                if Path(here.f_code.co_filename).is_relative_to(PACKAGE):
                    stack.append(here.f_code)
                here = here.f_back  # type: ignore[assignment]
            first[frame.f_code] = stack[::-1]

    # Files are read in a thread of their own.
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    yield from first.items()


def name_of(code: CodeType) -> str:
    return f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_qualname}"


def way_of_an_expert(run: Callable[[], Any]) -> list[str]:
    """The files that are on the stack in a fit when experts are read, decomposed and merged, and when the gradient of
    their coefficients is made."""
    from lit_merge.bank.weighted_sums import _LowRankSum
    from lit_merge.experts.stream import WeightStream
    from lit_merge.methods.cart import cart

    places: list[Any] = [WeightStream._read, cart, _LowRankSum.forward, _LowRankSum.backward]
    # Where shapes are checked at run time, functions are wrapped.
    codes = {inspect.unwrap(place).__code__ for place in places}
    found: dict[str, None] = {}
    for _, stack in stacks(codes, run):
        found |= dict.fromkeys(str(Path(code.co_filename).relative_to(PACKAGE)) for code in stack)
    return list(found)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    found = floors()
    rooms = [room for room in found if (PACKAGE / room).is_dir()]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values())
    print(f"{len(rooms)} rooms and {len(found) - len(rooms)} files on {max(found.values())} floors, {lines} lines")
    for level in range(max(found.values()), 0, -1):
        print(f"  {level:2}  {', '.join(sorted(room for room, floor in found.items() if floor == level))}")
    print("Lines of the methods:")
    for path in sorted((PACKAGE / "methods").glob("*.py")):
        print(f"  {path.stem:16}{len(path.read_text(encoding='utf-8').splitlines()):4}")
    long = [(len(p.read_text(encoding="utf-8").splitlines()), m) for m, p in MODULES.items()]
    print(f"Files over 250 lines: {', '.join(f'{m} ({n})' for n, m in sorted(long) if n > 250) or 'none'}")

    from lit_merge.cli.main import main as command
    from lit_merge.methods.cart import cart

    with tempfile.TemporaryDirectory() as folder:
        experts = {task: f"zoo:8/experts/{task}.safetensors" for task in TASKS}
        config = ["--config", str(ROOT / "configs" / "cart.yaml"), "--model.experts", json.dumps(experts)]
        merge = ["merge", *config, "--output", f"{folder}/merged.safetensors"]
        for _, stack in stacks({cart.__code__}, lambda: command(merge)):
            files = {code.co_filename for code in stack}
            print(f"From the verb merge to cart(): {len(stack) - 1} calls through {len(files)} files")
            print("".join(f"  {name_of(code)}\n" for code in stack), end="")
        fit = ["fit", *config, "--run", f"{folder}/run", "--trainer.max_steps", "1", "--data.tasks", json.dumps(TASKS)]
        way = way_of_an_expert(lambda: command(fit))
        print(f"From an expert's path to the gradient of its coefficients: {len(way)} files\n  " + "\n  ".join(way))


if __name__ == "__main__":
    main()
