"""docs/add_a_network.md: its network and its family pass their own tests, and the network runs in every verb."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file, save_file

from lit_merge.checkpoints.families import FAMILIES, Family, has_role
from lit_merge.cli.main import main
from lit_merge.experts.matrices import select_matrices

PAGE = (Path(__file__).parents[2] / "docs" / "add_a_network.md").read_text(encoding="utf-8")
NETWORK, NETWORK_TEST, ROLES, FAMILY, FAMILY_TEST = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(CONFIGURATION,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page names, from which Python imports."""
    files = {"my_network": NETWORK, "test_my_network": NETWORK_TEST, "clip_cpp": FAMILY, "test_clip_cpp": FAMILY_TEST}
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_own_tests(place: Path, forks: Any) -> None:
    said = forks.tests(place)
    assert "2 passed" in said, said


def test_the_network_runs(place: Path, tiny: Any) -> None:
    """Experts with classifiers of their own are merged without them, and adapted."""
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    (place / "experts").mkdir()
    heads = {}
    for task, classes in zip(tiny.tasks, (3, 4, 5), strict=True):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **small)
        save_file(model.state_dict(), place / "experts" / f"{task}.safetensors")
        heads |= {f"{task}.{name}": value.detach() for name, value in model.head.named_parameters()}
    save_file(heads, place / "heads.safetensors")
    (place / "timm.yaml").write_text(CONFIGURATION)
    start = ["--config", "timm.yaml", "--model.network.options", json.dumps(small)]
    start += ["--model.experts", "experts", "--model.method", "CART"]
    data = ["--data", "Suite", "--data.path", tiny.suite, "--data.batch_size", "4", *QUIET]
    assert main(["merge", *start, "--output", "merged.safetensors"]) == 0
    assert not any(name.startswith("head.") for name in load_file(place / "merged.safetensors"))
    assert main(["fit", *start, *data, "--run", "run", "--trainer.max_steps", "2"]) == 0
    assert (place / "run" / "bank" / "bank.json").is_file()


def test_roles_of_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("emb.weight", "blocks.0.att.key.weight", "blocks.0.ffn.value.weight", "blocks.0.mixer.weight")
    shapes = dict.fromkeys(names, (8, 8))
    assert select_matrices(shapes, "block") == {names[2]}
    scope: dict[str, Any] = {"Family": Family}
    exec(compile(ROLES, "add_a_network.md", "exec"), scope)
    monkeypatch.setattr("lit_merge.checkpoints.families.FAMILIES", [*FAMILIES, scope["RWKV"]])
    assert has_role("vocabulary", "emb.weight")
    assert select_matrices(shapes, "block") == set(names[1:3])
    assert select_matrices(shapes, "all") == set(names[1:])
