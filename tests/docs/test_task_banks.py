"""docs/task_banks.md: its tables are those that the scripts print of their results, and its first sections run."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_merge import TaskBank
from lit_merge.cli.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "task_banks.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
# Those of the page's own sections; others have tests of their own.
OWN = [one for one in SECTIONS if one.startswith(("# Task banks", "As small", "Opened", "Looked"))]


@pytest.mark.parametrize("subject", ["routing", "growing"])
def test_tables(subject: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module(f"benchmark_{subject}")
    found = json.loads((ROOT / "docs" / "results" / f"{subject}-zoo-8.json").read_text(encoding="utf-8"))
    rows = [line for line in script.table(found) if line.startswith("|")]
    assert len(rows) > 5
    assert "\n".join(rows) in PAGE


def blocks(language: str) -> list[str]:
    return [block for section in OWN for block in re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)]


def test_the_commands_and_python(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    method = {"class_path": "CART", "init_args": {"rank_ratio": 0.5}}
    # The page's tasks.
    experts = dict(zip(("thai", "greek", "latin"), tiny.experts.values(), strict=True))
    model = {"experts": experts, "base": tiny.base, "method": method}
    Path("configs/cart.yaml").write_text(yaml.safe_dump({"model": model}))
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("lit-merge")]
    assert len(commands) >= 8
    for line in commands:
        # Of a model this small, the description alone is as large as the budgets of the page.
        line = line.replace("--budget .3x", "--budget 1.2x").replace("--max_size 3MB", "--max_size 120kB")
        assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
    assert "times one model" in capsys.readouterr().out
    names = {"encoder": tiny.encoder().encoder.to_empty(device="cpu")}
    before = TaskBank.load("bank").expert("thai")
    (python,) = blocks("python")
    exec(python, names)  # type: ignore[arg-type]
    found = names["network"].state_dict()
    assert all(torch.equal(value, found[name]) for name, value in before.items())
