"""The suite's targets, and the whole check on a small zoo."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "scripts" / "check_zoo.py"


@pytest.fixture(scope="module")
def check_zoo() -> Any:
    spec = importlib.util.spec_from_file_location("check_zoo", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {
    "pretrained": 0.5,
    "weight averaging": 0.64,
    "task arithmetic": 0.7,
    "TSV-M": 0.8,
    "Iso-C": 0.82,
    "CART": 0.85,
    "CART at λ = 1": 0.72,
    "  adapted, no labels": 0.84,
    "experts": 0.96,
}


def test_targets_hold_where_they_should(check_zoo: Any) -> None:
    assert all(holds for *_, holds in check_zoo.targets(GOOD))


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"experts": 0.91}, 0),
        ({"weight averaging": 0.77, "task arithmetic": 0.771, "TSV-M": 0.8}, 1),
        ({"task arithmetic": 0.78}, 2),
        ({"  adapted, no labels": 0.815}, 3),
        ({"Iso-C": 0.79}, 4),
    ],
)
def test_a_target_that_is_missed_is_told(changed: dict[str, float], missed: int, check_zoo: Any) -> None:
    assert not check_zoo.targets(GOOD | changed)[missed][2]
