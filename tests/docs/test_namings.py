"""docs/namings.md: its configuration and commands run on small CLIPs that transformers, OpenAI and open_clip name."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import TaskBank
from lit_merge.checkpoints import canonical_weights, named, rename
from lit_merge.cli.main import main
from tests.clip_models import EMBED, hugging_face_tower, moved, open_clip_model, state

PAGE = (Path(__file__).parents[2] / "docs" / "namings.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^lit-merge (.*)$", PAGE, re.MULTILINE)
TASKS = {"birds": "alpha", "cars": "beta", "signs": "gamma"}
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


def as_named(weights: dict[str, Tensor], naming: str) -> dict[str, Tensor]:
    inside = canonical_weights(weights)
    return {name: value.contiguous() for name, value in rename(inside, named(naming, inside)).items()}


@pytest.fixture
def place(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    for folder in ("experts", "images", "labelled"):
        Path(folder).mkdir()
    base = state(open_clip_model("tiny"))
    torch.save(as_named(base, "openai"), "ViT-B-32.pt")
    birds, cars, signs = (moved(base, seed) for seed in range(3))
    tower = {name.removeprefix("visual."): value for name, value in birds.items() if name.startswith("visual.")}
    model = hugging_face_tower("tiny")
    model.load_state_dict(as_named(tower, "hugging_face"))
    model.save_pretrained("experts/birds")
    image = {name: value for name, value in as_named(cars, "openai").items() if name.startswith("visual.")}
    torch.save(image, "experts/cars.pt")
    tower = {name.removeprefix("visual."): value for name, value in signs.items() if name.startswith("visual.")}
    save_file(tower, "experts/signs.safetensors")
    heads = {
        task: torch.nn.functional.normalize(torch.randn(n, EMBED)) for task, n in zip(TASKS, (3, 4, 5), strict=True)
    }
    save_file(heads, "heads.safetensors")
    for task, source in TASKS.items():
        Path("images", task).symlink_to(tiny.adapt_folders[source])
        Path("labelled", task).symlink_to(tiny.test_folders[source])
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    Path("namings.yaml").write_text(text)
    return tmp_path


def test_commands(place: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    assert [command.split()[0] for command in COMMANDS] == ["merge", "fit", "export", "convert"]
    for command in COMMANDS:
        verb, *options = shlex.split(command)
        more = [] if verb == "convert" else [*QUIET, *(["--trainer.max_steps", "2"] if verb == "fit" else [])]
        assert main([verb, *options, *more]) == 0, command
    open_clip_model("tiny").visual.load_state_dict(load_file("merged.safetensors"), strict=True)
    loaded, said = CLIPVisionModelWithProjection.from_pretrained("adapted", output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    expected = TaskBank.load("runs/namings/bank").merge(naming="hugging_face")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in expected.items())
    # The configuration of one library is none of another's.
    assert main(["merge", "--config", "namings.yaml", "--output", "other", "--naming", "openai", *QUIET]) == 0
    assert [path.name for path in Path("other").iterdir()] == ["model.safetensors"]
    assert "vision_model.post_layernorm.weight" in load_file("base.safetensors")
