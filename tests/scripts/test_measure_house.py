"""The measures of the house, held where they have been reached."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lit_merge.cli.main import main
from lit_merge.methods.cart import cart

PATH = Path(__file__).parents[2] / "scripts" / "measure_house.py"
LINES = dict.fromkeys(("cart", "tsv", "tsv_compress", "iso", "iso_cts", "consensus", "regmean", "arithmetic"), 60)


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("measure_house", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_floors(script: Any) -> None:
    floors = script.floors()
    assert floors["errors"] == 1
    assert floors["cli"] == max(floors.values()) <= 11
    assert sum((script.PACKAGE / room).is_dir() for room in floors) == 11


def test_a_method_is_its_formula(script: Any) -> None:
    for name, most in (LINES | {"esm": 120, "ties": 120}).items():
        assert len((script.PACKAGE / "methods" / f"{name}.py").read_text().splitlines()) <= most, name


def test_from_the_verb_to_the_formula(script: Any, tiny: Any, tmp_path: Path) -> None:
    merge = ["merge", "--model.experts", str(tiny.experts), "--model.method", "CART"]
    merge += ["--model.method.rank_ratio", "0.5", "--output", str(tmp_path / "merged.safetensors")]
    code = getattr(cart, "__wrapped__", cart).__code__
    ((_, stack),) = script.stacks({code}, lambda: main(merge))
    names = [script.name_of(one) for one in stack]
    assert names[0] == "cli/main.py:main"
    assert names[-1] == "methods/cart.py:cart"
    assert len(names) - 1 <= 5
    assert len({name.partition(":")[0] for name in names}) <= 5
