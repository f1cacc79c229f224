"""The measures of the house, held where they have been reached."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def test_from_an_experts_path_to_the_gradient(script: Any, tiny: Any, tmp_path: Path) -> None:
    network = {"class_path": "OpenClipImageEncoder", "init_args": {"config": tiny.network, "heads": tiny.heads}}
    method = {"class_path": "CART", "init_args": {"rank_ratio": 0.5}}
    stages = [{"granularity": "layer", "steps": 1}]
    content = {
        "model": {"experts": dict(tiny.experts), "network": network, "method": method, "stages": stages},
        "data": {"class_path": "Suite", "init_args": {"path": tiny.suite, "batch_size": 4}},
        "trainer": {"enable_progress_bar": False, "accelerator": "cpu"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    fit = ["fit", "--config", str(tmp_path / "config.yaml"), "--run", str(tmp_path / "run")]
    files = script.way_of_an_expert(lambda: main(fit))
    assert files[0] == "cli/main.py"
    assert {"experts/stream.py", "methods/cart.py", "bank/weighted_sums.py"} <= set(files)
    assert len(files) <= 12, files
