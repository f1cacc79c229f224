"""docs/add_an_objective.md: its objective passes its own test, adapts from Python, and from a configuration."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_merge import CART, MergedModel, Stage, adapt, build_bank
from lit_merge.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "add_an_objective.md").read_text(encoding="utf-8")
SOURCE, TEST, USE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(CONFIGURATION,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_an_objective_of_your_own(tmp_path: Path, tiny: Any, forks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_objective.py").write_text(SOURCE)
    (tmp_path / "test_my_objective.py").write_text(TEST)
    (tmp_path / "objective.yaml").write_text(CONFIGURATION)
    said = forks.tests(tmp_path)
    assert "1 passed" in said, said
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    from my_objective import TsallisEntropy

    bank = build_bank(tiny.experts, method=CART(rank_ratio=0.5))
    scope: dict[str, Any] = {"bank": bank, "network": tiny.encoder(), "data": tiny.data()}
    scope |= {"adapt": adapt, "MergedModel": MergedModel, "Stage": Stage, "TsallisEntropy": TsallisEntropy}
    exec(compile(USE, "add_an_objective.md", "exec"), scope)
    assert not torch.equal(scope["adapted"].coefficients, bank.coefficients)
    assert scope["model"].objective == TsallisEntropy(1.5)

    network = ["--model.network", "OpenClipImageEncoder", "--model.network.config", tiny.network]
    network += ["--model.network.heads", tiny.heads, "--model.experts", f"{tiny.root}/experts"]
    network += ["--model.method", "CART", "--data", "Suite", "--data.path", tiny.suite, "--data.batch_size", "4"]
    start = ["fit", "--config", "objective.yaml", *network, "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]
    start += ["--trainer.enable_progress_bar", "false"]
    assert main([*start, "--run", "run"]) == 0
    assert "q: 1.5" in (tmp_path / "run" / "config.yaml").read_text()
    assert main([*start, "--run", "other", "--model.objective.q", "1.2"]) == 0
    assert "q: 1.2" in (tmp_path / "other" / "config.yaml").read_text()
    assert main([*start, "--run", "never", "--model.objective.q", "0.5"]) == 2
