"""Every configuration of docs/data.md runs, and its table says which scenario it is."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from lit_merge import MergeWarning
from lit_merge.cli.main import main

ROOT = Path(__file__).parents[2]
SCENARIOS, OWN = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("## Your own images")
BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
# What tells the scenarios of the page apart, in its order.
TOLD = (
    "inductive (adapted on other images",
    "transductive (adapted on the test images themselves",
    "online (one pass over the test images",
    "online (one pass over the test images",
    "stream sorted by class",
    "adapted on 12 images of alpha, 2 images of beta",
    "right among the classes of all tasks",
    "all images corrupted: noise, severity 3",
)
OWN_TOLD = ("tested on none", "inductive (", "online: one pass", "right among the classes of all tasks")
NAMES = {"birds": "alpha", "cars": "beta", "signs": "gamma"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """run(verb, configurations, …): what `fit` or `test` reports."""
    monkeypatch.setenv("LIT_MERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def start(verb: str, configs: list[str], *options: str) -> dict[str, Any]:
        files = []
        for i, text in enumerate(configs):
            (tmp_path / f"{i}.yaml").write_text(text)
            files += ["--config", f"{i}.yaml"]
        place = ["--run", "run"] if verb == "fit" else ["--output", "run.json"]
        assert main([verb, *files, *options, *QUIET, *place]) == 0
        return json.loads((tmp_path / ("run/metrics.json" if verb == "fit" else "run.json")).read_text())

    return start


@pytest.mark.parametrize("number", range(len(TOLD)))
def test_scenarios(number: int, run: Callable[..., dict[str, Any]], tiny: Any, tmp_path: Path) -> None:
    """On the tiny zoo, whose tasks have other names. An online stream is short enough to be fitted to its end."""
    blocks = BLOCK.findall(SCENARIOS)
    assert len(blocks) == len(TOLD)
    block = blocks[number].replace("mnist", "alpha").replace("thai", "beta")
    online = "online" in block
    report = run("fit" if online else "test", [(ROOT / "configs/quickstart.yaml").read_text(), block], *tiny.options)
    assert TOLD[number] in report["protocol"]
    assert ("online" in report["mean"]) == online
    if "batch_size: 1}" in block:
        logged = (tmp_path / "run" / "log" / "metrics.csv").read_text().splitlines()
        assert len(logged) == 1 + 26 // 10  # every tenth step of 26


@pytest.fixture
def own(tiny: Any, tmp_path: Path) -> list[str]:
    """The files that the page speaks of; its configurations at the size of the tiny images."""
    for name, task in NAMES.items():
        shutil.copytree(tiny.adapt_folders[task], tmp_path / "images" / name)
        shutil.copytree(tiny.test_folders[task], tmp_path / "test" / name)
        for folder in ("experts", "classes"):
            (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(tiny.experts[task], tmp_path / "experts" / f"{name}.safetensors")
        # In another order than the sorted folders.
        folders = sorted((path.name for path in (tmp_path / "test" / name).iterdir()), reverse=True)
        lines = [f"{folder}\t{name} of kind {i}" for i, folder in enumerate(folders)]
        (tmp_path / "classes" / f"{name}.txt").write_text("\n".join(lines))
    shutil.copy(tiny.base, tmp_path / "pretrained.safetensors")
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    options = json.loads(Path(tiny.network).read_text()) | {"text_cfg": text}
    (tmp_path / "network.json").write_text(json.dumps(options))
    with torch.random.fork_rng():
        clip = open_clip.CLIP(options["embed_dim"], options["vision_cfg"], text)
    save_file(
        {name: value.clone() for name, value in clip.state_dict().items()}, tmp_path / "open_clip_model.safetensors"
    )
    return BLOCK.findall(OWN)


@pytest.mark.parametrize("number", range(len(OWN_TOLD)))
def test_own_images(number: int, own: list[str], run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    assert len(own) == len(OWN_TOLD)
    block = own[number]
    if number == 0:
        report = run("fit", [block], "--trainer.max_steps", "2")
    elif "skip" in block:
        (tmp_path / "test" / "cars" / "class0" / "bad.jpg").write_text("no image")
        with pytest.warns(MergeWarning, match="1 of 18 images of task cars cannot be read"):
            report = run("test", [own[0], block])
    else:
        report = run("fit" if "online" in block else "test", [own[0], block])
    assert OWN_TOLD[number] in report["protocol"]
    assert list(report["tasks"]) == ([] if number == 0 else list(NAMES))
