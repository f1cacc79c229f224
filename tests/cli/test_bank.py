"""The verb bank and its commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from lit_merge import CART, ImageFolders, IsoC, MergeWarning, TaskBank, build_bank
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
        (["--metric", "features"], "metric=features is of a bank of limited size: give --budget"),
        (["--budget", "2x", "--metric", "features"], "looks at unlabelled inputs: give --model.network and --data"),
    ):
        arguments = ["export", "--config", str(config), "--output", f"{tmp_path}/none", *options]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "none").exists()


def test_what_cannot_be_measured_does_not_cost_the_bank(tiny: Any, tmp_path: Path) -> None:
    """A method with one delta for all tasks has no task's own model; data that a configuration names may be gone."""
    network = ["OpenClipImageEncoder", "--model.network.config", tiny.network, "--model.network.heads", tiny.heads]
    for name, method, suite, why in (
        ("shared", IsoC(), str(tiny.suite), "one delta"),
        ("gone", CART(rank_ratio=1.0), f"{tmp_path}/nowhere", "nowhere"),
    ):
        build_bank(tiny.experts, base=tiny.base, method=method).save(tmp_path / name)
        verb = ["export", "--model.bank", f"{tmp_path}/{name}", "--budget", "1.2x", "--model.network", *network]
        data = ["--data", "Suite", "--data.path", suite]
        with pytest.warns(MergeWarning, match=f"kept of every task was not measured: .*{why}"):
            assert main([*verb, *data, "--output", f"{tmp_path}/{name}-small"]) == 0
        assert TaskBank.load(tmp_path / f"{name}-small").tasks == tiny.tasks


@pytest.mark.parametrize("labelled", [True, False])
def test_a_budget_measured_on_features_and_what_it_keeps_of_every_task(
    labelled: bool, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With data, a table says what became of every task: what the stored bank's experts predict, counted here anew."""
    bank = build_bank(tiny.experts, method=CART(rank_ratio=1.0))
    bank.save(tmp_path / "whole")
    data = tiny.data() if labelled else ImageFolders(tiny.adapt_folders)
    given = (
        ["Suite", "--data.path", str(tiny.root)]
        if labelled
        else ["ImageFolders", "--data.adapt", json.dumps(tiny.adapt_folders)]
    )
    network = ["OpenClipImageEncoder", "--model.network.config", tiny.network, "--model.network.heads", tiny.heads]
    verb = ["export", "--model.bank", f"{tmp_path}/whole", "--budget", "1.2x", "--metric", "features"]
    shown = [*verb, "--model.network", *network, "--data", *given, "--output", f"{tmp_path}/bank"]
    assert main(shown) == 0
    rows = [line.split() for line in capsys.readouterr().out.split("task known")[1].splitlines()]
    said = {
        row[0]: [float(value) / 100 for value in row[1:]] for row in rows if row and row[0] in (*tiny.tasks, "mean")
    }
    stored, encoder = TaskBank.load(tmp_path / "bank"), tiny.encoder()
    inputs = {task: source for task, (source, _) in data.labelled("test").items()} if labelled else data.unlabelled()
    expected: dict[str, list[float]] = {}
    for task in tiny.tasks:
        data.suit(encoder)
        images = {task: inputs[task].read(range(len(inputs[task])))}
        before, after = (encoder(one.expert(task), images)[task].argmax(-1) for one in (bank, stored))
        right = (
            [(rows == data.labelled("test")[task][1]).double().mean() for rows in (before, after)] if labelled else []
        )
        expected[task] = [float(value) for value in (*right, (before == after).double().mean())]
    expected["mean"] = np.mean(list(expected.values()), axis=0).tolist()
    assert said.keys() == expected.keys()
    for task, values in expected.items():
        assert said[task] == pytest.approx(values, abs=6e-4)
