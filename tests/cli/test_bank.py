"""The verb bank and its commands."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from lit_merge import CART, build_bank
from lit_merge.cli.main import main


def test_diff(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = build_bank(tiny.experts, method=CART(rank_ratio=0.5, scaling=1.5))
    bank.save(tmp_path / "one")
    cut = bank.truncate(0.25)
    replace(cut, coefficients=cut.coefficients + 0.5).save(tmp_path / "other")
    assert main(["bank", "diff", f"{tmp_path}/one", f"{tmp_path}/one"]) == 0
    assert "equal in tasks, weights, values and coefficients" in capsys.readouterr().out
    assert main(["bank", "diff", f"{tmp_path}/one", f"{tmp_path}/other"]) == 0
    said = capsys.readouterr().out
    assert "CART(rank_ratio=0.5, scaling=1.5, matrices=block)" in said
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert {task: rows[task][1] for task in bank.tasks} == dict.fromkeys(bank.tasks, "0.5")
    assert "transformer.resblocks.0.attn.in_proj_weight 16 → 8" in said
    assert "more weights differ (--all lists them)" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dif"], "bank: no command 'dif'; the nearest is diff"),
        (["diff", "one"], "bank diff: the following arguments are required: B"),
        (["diff", "one", "two"], "one is no task bank"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bank", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_export_within_a_budget(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    method = {"class_path": "CART", "init_args": {"rank_ratio": 1.0}}
    config.write_text(yaml.safe_dump({"model": {"experts": tiny.experts, "base": tiny.base, "method": method}}))
    export = ["export", "--config", str(config), "--origin", "base", "--budget", "1.5x"]
    assert main([*export, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert main([*export, "--output", f"{tmp_path}/bank"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(planned)
    nbytes = sum(file.stat().st_size for file in (tmp_path / "bank").iterdir())
    assert f"{nbytes:,} bytes" in said
    assert 1.45 < nbytes / sum(value.nbytes for value in load_file(tiny.base).values()) <= 1.5
    assert "transformer.resblocks.#.mlp.c_fc.weight (2 alike)" in said
    assert main(["inspect", f"{tmp_path}/bank"]) == 0
    assert "base.safetensors" in capsys.readouterr().out
    plain = ["export", "--model.bank", f"{tmp_path}/bank", "--dtype", "float16", "--rank_ratio", "0.5"]
    assert main([*plain, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert main([*plain, "--output", f"{tmp_path}/again"]) == 0
    nbytes = sum(file.stat().st_size for file in (tmp_path / "again").iterdir())
    assert planned.startswith(f"{nbytes:,} bytes")
    capsys.readouterr()
    for options, message in (
        (["--budget", ".01x"], "a budget of "),
        (["--format", "merged", "--budget", "2x"], "are of format=bank: leave them out for merged"),
        (["--budget", "2x", "--max_shard_size", "1MB"], "max_shard_size is of format=merged and format=task"),
        (["--budget", "2x", "--devices", "2"], "devices=2: one process compresses a bank"),
        (["--budget", "2x", "--max_size", "5MB"], "give one of them"),
    ):
        arguments = ["export", "--config", str(config), "--output", f"{tmp_path}/none", *options]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "none").exists()
