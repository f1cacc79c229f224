"""What starts at once: most verbs and wrong configurations wait for no heavy package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

HEAVY = ("lightning", "torchmetrics", "transformers", "open_clip", "datasets", "torchvision", "matplotlib")
PROGRAM = f"""
import contextlib, io, json, sys
import lit_merge
lit_merge.merge_files, lit_merge.CART
from lit_merge.cli.main import main
for arguments in json.load(sys.stdin):
    said, code = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except SystemExit as stopped:
            code = stopped.code
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    print(json.dumps([code, heavy, said.getvalue()]))
"""


def test_no_heavy_package(tiny: Any, tmp_path: Path) -> None:
    """All in one process, which has imported nothing that any of them does not need."""
    network = {"class_path": "OpenClipImageEncoder", "init_args": {"config": tiny.network, "heads": tiny.heads}}
    method = {"class_path": "CART", "init_args": {"rank_ratio": 0.5}}
    model = {"experts": tiny.experts, "base": tiny.base, "network": network, "method": method}
    data = {"class_path": "Suite", "init_args": {"path": tiny.suite}}
    config, out = tmp_path / "config.yaml", str(tmp_path / "out")
    config.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"accelerator": "cpu"}}))
    logger = tmp_path / "logger.yaml"
    logger.write_text("trainer: {logger: [{class_path: CSVLoger, init_args: {save_dir: logs}}]}")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text('{"method": "CART", "protocol": "?", "split": "test", "tasks": {}}')
    files = ["--config", str(config)]
    fit = ["fit", *files, "--run", out]
    good = [
        *([verb, "--help"] for verb in ("fit", "validate", "test", "predict", "merge", "export", "convert", "leaks")),
        ["merge", *files, "--output", f"{tmp_path}/merged.safetensors"],
        ["merge", *files, "--dry-run"],
        ["export", *files, "--output", f"{tmp_path}/bank"],
        ["export", *files, "--model.bank", f"{tmp_path}/bank", "--output", f"{tmp_path}/small", "--rank_ratio", "0.1"],
        ["inspect", f"{tmp_path}/bank"],
        ["bank", "--help"],
        ["bank", "diff", f"{tmp_path}/bank", f"{tmp_path}/small"],
        ["convert", tiny.base, "--output", f"{tmp_path}/converted.safetensors"],
        ["convert", f"{tmp_path}/model.pt", "--output", f"{tmp_path}/model.safetensors"],
        ["leaks", *files],
        ["init", str(tiny.root), "--output", f"{tmp_path}/first.yaml"],
        ["report", f"{tmp_path}/run", "--output", f"{tmp_path}/report.html"],
        ["zoo"],
        ["explain"],
        ["explain", "CART"],
        ["explain", "RankSchedule"],
    ]
    wrong = {
        "nearest is model.stages": [*fit, "--model.stagess", "3"],
        "nearest is trainer.max_steps": [*fit, "--trainer.max_step", "3"],
        "a whole number": [*fit, "--trainer.max_steps", "many"],
        "nearest is CART": [*fit, "--model.method", "CARTT"],
        "nearest is inductive": [*fit, "--data.protocol", "inductiv"],
        "nowhere.safetensors": [*fit, "--model.experts.beta", "nowhere.safetensors"],
        "exists: pass --overwrite": ["fit", *files, "--run", f"{tmp_path}/bank"],
        "bf16-true, bf16-mixed, 32-true, 64-true, 64, 32, 16 or bf16, got bf61": [*fit, "--trainer.precision", "bf61"],
        "no 'gpuu'; the nearest is gpu": [*fit, "--trainer.accelerator", "gpuu"],
        "no 'dpp'; the nearest is ddp": ["test", *files, "--trainer.strategy=dpp"],
        "no Callback 'RankSchedul'; the nearest is RankSchedule": [*fit, "--trainer.callbacks+=RankSchedul"],
        "no Callback 'EarlyStoping'; the nearest is EarlyStopping": [*fit, "--trainer.callbacks", "EarlyStoping"],
        "no Logger 'CSVLoger'; the nearest is CSVLogger": [*fit, "--config", str(logger)],
        "needs --output": ["predict", *files],
        "no such configuration file": ["test", "--config", "absent.yaml"],
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([*good, *wrong.values()]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(good) + len(wrong), done.stderr
    for arguments, (code, heavy, said) in zip(good, rows, strict=False):
        assert (code, heavy) == (0, []), (arguments, said)
    for (shown, arguments), (code, heavy, said) in zip(wrong.items(), rows[len(good) :], strict=True):
        assert (code, heavy) == (2, []), (arguments, said)
        assert shown in said
    # A verb's own options come first, the Trainer's last.
    help_of_fit = rows[0][2]
    options = help_of_fit[help_of_fit.index("options:") :]
    assert options.index("--run") < options.index("--model.stages") < options.index("--trainer.max_steps")
    assert "Options of Lightning's Trainer" in options
