"""docs/your_own_clip.md and its notebook: every command, block and cell runs on real open_clip models."""

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lit_merge.cli.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your_own_clip.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^lit-merge (.*)$", PAGE, re.MULTILINE)]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(YAML,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
# What cuts a command to a second or two.
SHORT = {
    "fit": [*QUIET, "--trainer.max_steps", "2"],
    "test": QUIET,
    "predict": QUIET,
    "sweep": ["--rank_ratios", "[0.16]", "--scalings", "[1.0, 3.0]", "--images", "16", *QUIET],
}


@pytest.fixture(scope="module")
def practice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the page makes, with fewer images."""
    file = ROOT / "examples" / "practice_files.py"
    spec = importlib.util.spec_from_file_location("practice_files", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("own") / "practice"
    module.make(folder, images=16)
    sys.modules["practice_files"] = module
    yield folder
    del sys.modules["practice_files"]


@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
def test_the_page(practice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(practice)
    verbs = [verb for verb, *_ in COMMANDS]
    assert {"init", "inspect", "merge", "sweep", "fit", "test", "predict", "export"} <= set(verbs)
    for verb, *options in COMMANDS:
        assert main([verb, *options, *SHORT.get(verb, [])]) == 0, (verb, options)
    assert Path("my.yaml").read_text(encoding="utf-8") == YAML
    chosen = ["--config", "my.yaml", "--config", "runs/sweep/chosen.yaml"]
    assert main(["merge", *chosen, "--output", "chosen.safetensors"]) == 0
    capsys.readouterr()
    heads, use = PYTHON
    exec(heads, {})
    written = load_file("my_heads.safetensors")
    assert all(torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5) for rows in written.values())
    assert main(["test", "--config", "my.yaml", "--model.bank", "runs/my/bank", *QUIET]) == 0
    said = json.loads(Path("runs/my/metrics.json").read_text())
    scope: dict[str, Any] = {}
    exec(use, scope)
    # open_clip alone, on the merged file: what the report says of the adapted merge.
    for task, row in said["tasks"].items():
        assert accuracy(scope["model"], scope["preprocess"], task) == pytest.approx(row["adapted_accuracy"], abs=1e-6)
    greek = load_file("greek.safetensors")
    expert = torch.load("experts/greek.pt", weights_only=True)["state_dict"]
    error = sum(float((greek[name] - expert[name]).norm() ** 2) for name in expert)
    assert error < 0.2 * sum(float((expert[name] - load_base()[name]).norm() ** 2) for name in expert)


def load_base() -> dict[str, torch.Tensor]:
    return load_file("pretrained/open_clip_model.safetensors")


def accuracy(model: Any, preprocess: Any, task: str) -> float:
    """Of a model of open_clip with a head of the file, on the labelled images of a task."""
    from PIL import Image
    from safetensors import safe_open

    with safe_open("heads.safetensors", "pt") as file:
        rows, names = file.get_tensor(task).float(), json.loads(file.metadata()["class_names"])[task]
    files = sorted(Path("labelled", task).glob("*/*.png"))
    with torch.no_grad():
        features = model.encode_image(torch.stack([preprocess(Image.open(file)) for file in files]))
    right = (F.normalize(features, dim=-1) @ rows.T).argmax(1).tolist()
    return sum(names[row] == file.parent.name for row, file in zip(right, files, strict=True)) / len(files)


@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
def test_the_notebook(practice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(practice.parent)
    notebook = json.loads((ROOT / "examples" / "your_own_clip.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    scope: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]).replace("steps=100", "steps=1"), cell["id"], "exec"), scope)
    assert capsys.readouterr().out.count("→") == 3
    merged = scope["adapted"].merge()
    assert all(torch.equal(value, merged[name]) for name, value in scope["model"].state_dict().items())
