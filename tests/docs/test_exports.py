"""docs/exports.md: its commands run on small CLIPs, and its adapters load as it says."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lit_merge import CART, build_bank
from lit_merge.cli.main import main
from tests.clip_models import EMBED, moved, open_clip_config, open_clip_model, state

PAGE = (Path(__file__).parents[2] / "docs" / "exports.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^lit-merge (.*)$", PAGE, re.MULTILINE)]
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import json

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = state(open_clip_model("tiny"))
    torch.save(base, "ViT-B-32.pt")
    experts = {
        task: {name: value for name, value in moved(base, seed).items() if name.startswith("visual.")}
        for seed, task in enumerate(("birds", "cars"))
    }
    build_bank(
        experts | {"signs": {name: value * 1.1 for name, value in experts["cars"].items()}}, method=CART(0.2)
    ).save("bank")
    Path("network.json").write_text(json.dumps(open_clip_config("tiny")))
    save_file({task: torch.randn(3, EMBED) for task in ("birds", "cars", "signs")}, "heads.safetensors")
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_commands_and_blocks(place: Path) -> None:
    formats = [command[command.index("--format") + 1] for command in COMMANDS]
    assert {*formats} == set(re.findall(r"^\| `(\w+)", PAGE, re.MULTILINE))
    for command, kind in zip(COMMANDS, formats, strict=True):
        # That one is run by tests/merge/test_elsewhere.py: it takes seconds.
        if kind != "onnx":
            assert main(command) == 0, command
    for block in BLOCKS:
        if "onnxruntime" in block:
            compile(block, "exports.md", "exec")
        else:
            exec(block, {})
