"""docs/bank_format.md: its reader reads every version as the package does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lit_merge import CART, TaskBank, build_bank
from lit_merge.merge.compressed_bank import compress_bank

PAGE = (Path(__file__).parents[2] / "docs" / "bank_format.md").read_text(encoding="utf-8")
(READER,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def bank(tiny: Any) -> TaskBank:
    return build_bank(tiny.experts, method=CART(rank_ratio=0.5))


@pytest.mark.parametrize(
    "options",
    [None, {}, {"dtype": "int4"}, {"dtype": "float16"}, {"origin": "base"}, {"origin": "base", "dtype": "int8"}],
    ids=str,
)
def test_the_reader(options: dict[str, Any] | None, bank: TaskBank, tiny: Any, tmp_path: Path) -> None:
    if options is None:
        bank.save(tmp_path / "bank")
    else:
        compress_bank(bank, tmp_path / "bank", budget="1.5x", base=tiny.base, **options)
    reader: dict[str, Any] = {}
    exec(READER, reader)
    loaded, base = TaskBank.load(tmp_path / "bank"), load_file(tiny.base)
    for task in bank.tasks:
        found = reader["expert"](tmp_path / "bank", task, base)
        wanted = loaded.expert(task)
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)
    described = json.loads((tmp_path / "bank" / "bank.json").read_text()).keys()
    assert described <= set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
