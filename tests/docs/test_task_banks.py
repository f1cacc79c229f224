"""The tables of docs/task_banks.md are those that the scripts print of their results."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("subject", ["routing", "growing"])
def test_tables(subject: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module(f"benchmark_{subject}")
    found = json.loads((ROOT / "docs" / "results" / f"{subject}-zoo-8.json").read_text(encoding="utf-8"))
    rows = [line for line in script.table(found) if line.startswith("|")]
    assert len(rows) > 5
    page = (ROOT / "docs" / "task_banks.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in page
