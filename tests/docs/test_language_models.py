"""docs/language_models.md: its commands run on very small Llamas in shards, with added tokens, and with adapters."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from lit_merge.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "language_models.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^lit-merge (.*)$", PAGE, re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(language_models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    language_models.save(tmp_path)
    shutil.copytree("experts", "grown")
    language_models.add_tokens(Path("grown") / "chat", "<think>")
    for i, task in enumerate(("chat", "code", "math")):
        language_models.save_adapter(Path("base"), Path("adapters") / task, seed=i)
    return tmp_path


# peft asks a transformers of today what it used to ask.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_commands(language_models: Any, place: Path) -> None:
    verbs = [command.split()[0] for command in COMMANDS]
    assert set(verbs) == {"inspect", "init", "merge", "export", "analyze"}
    for command in COMMANDS:
        assert main(shlex.split(command)) == 0, command
    said: dict[str, Any] = {}
    exec(PYTHON[0], said)
    assert len(said["tokenizer"]) == said["model"].config.vocab_size
    for folder in ("merged", "other", "cropped", "kept", "from_file", "from_adapters", "code", "again"):
        language_models.load(Path(folder))
