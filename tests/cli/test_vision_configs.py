"""configs/vision and configs/clip-vit-*: every pair of files runs, on a small tower, and on small real images."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from open_clip.model import _build_vision_tower
from safetensors.torch import save_file

import lit_merge
from lit_merge import MergeMethod, VisionTasks
from lit_merge.cli.main import main
from lit_merge.data.vision.task_list import TASKS
from lit_merge.networks.clip_configurations import open_clip_options

ROOT = Path(__file__).parents[2]
PAIRS = [(model, tasks) for model in ("b-32", "b-16", "l-14") for tasks in (8, 14, 20)]
DOCS = (ROOT / "docs" / "vision_tasks.md").read_text(encoding="utf-8")
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
OTHER = re.compile(r"^  # method: (\{.*?\}+) #", re.MULTILINE)

pytestmark = [
    pytest.mark.usefixtures("any_digest"),
    pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning"),
]


@pytest.fixture(scope="module")
def images(vision_root: Path, vision_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every task's, PCAM as a copy from the Hub, which needs no other package."""
    from datasets import DatasetDict

    place = tmp_path_factory.mktemp("images")
    for path in vision_root.iterdir():
        if path.name != "pcam":
            (place / path.name).symlink_to(path)
    parts = {split: vision_files.table("PCAM", split, ["no", "yes", "perhaps"]) for split in ("train", "test")}
    DatasetDict(parts).save_to_disk(place / "pcam")
    return place


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B/32's configuration, made small."""
    options = open_clip_options("ViT-B-32-quickgelu")
    sizes = {"image_size": 16, "patch_size": 8, "layers": 1, "width": 64}
    small = options | {"embed_dim": 16, "vision_cfg": options["vision_cfg"] | sizes}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    path = tmp_path_factory.mktemp("config") / "small.json"
    path.write_text(json.dumps(small | {"text_cfg": text}))
    return path


@pytest.fixture(scope="module")
def checkpoints(images: Path, config: Path, any_digest: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts, their base, and heads as released, of as many rows as the images have classes."""
    place = tmp_path_factory.mktemp("checkpoints")
    options = json.loads(config.read_text())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = _build_vision_tower(16, options["vision_cfg"], True).state_dict()
        save_file({name: value.clone() for name, value in base.items()}, place / "pretrained.safetensors")
        for task in (task.name for task in TASKS):
            save_file({n: w + 0.01 * torch.randn_like(w) for n, w in base.items()}, place / f"{task}.safetensors")
    data = VisionTasks(str(images), 20, image_size=16)
    for task in data.tasks:
        names = data.class_names(task)
        assert names is not None
        rows = 100 * torch.nn.functional.normalize(torch.randn(len(names), 16))
        save_file({"weight": rows, "bias": torch.zeros(len(names))}, place / f"head_{task}.safetensors")
    return place


@pytest.fixture
def run(
    images: Path, checkpoints: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    monkeypatch.setenv("CHECKPOINTS", str(checkpoints))
    monkeypatch.setenv("IMAGES", str(images))
    monkeypatch.setenv("LIT_MERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    def start(verb: str, model: str, tasks: int, *options: str) -> int:
        files = ["--config", f"configs/vision/{tasks}.yaml", "--config", f"configs/clip-vit-{model}/{tasks}.yaml"]
        return main([verb, *files, "--model.network.init_args.config", str(config), *QUIET, *options])

    return start


def test_a_fit(run: Callable[..., int], tmp_path: Path) -> None:
    short = ["--trainer.max_steps", "1", "--data.batch_size", "2", "--trainer.limit_test_batches", "2"]
    assert run("fit", "b-32", 8, *short) == 0
    report = json.loads((tmp_path / "runs" / "vision-8" / "metrics.json").read_text())
    assert report["protocol"].startswith("transductive")


@pytest.mark.parametrize(("model", "tasks"), [("b-32", 20), ("b-16", 14), ("l-14", 8)])
def test_a_test(model: str, tasks: int, run: Callable[..., int], tmp_path: Path) -> None:
    assert run("test", model, tasks, "--output", "test.json") == 0
    report = json.loads((tmp_path / "test.json").read_text())
    assert list(report["tasks"]) == [task.name for task in TASKS[:tasks]]


@pytest.mark.parametrize(("model", "tasks"), PAIRS)
def test_networks_methods_and_figures(model: str, tasks: int) -> None:
    text = (ROOT / "configs" / f"clip-vit-{model}" / f"{tasks}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)["model"]
    open_clip_options(content["network"]["init_args"]["config"])
    others = [yaml.safe_load(found) for found in OTHER.findall(text)]
    assert len(others) == text.count("# method:") >= 4
    for choice in [content["method"], *others]:
        made = getattr(lit_merge, choice["class_path"])(**choice.get("init_args", {}))
        assert isinstance(made, MergeMethod)
    assert "P-TALL" in text


def test_the_page(
    run: Callable[..., int], images: Path, checkpoints: Path, config: Path, tmp_path: Path, tiny: Any, vision_files: Any
) -> None:
    data, heads, hub = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    (tmp_path / "images").symlink_to(images)
    (tmp_path / "data.yaml").write_text(data)
    assert run("test", "b-32", 8, "--config", "data.yaml", "--trainer.limit_test_batches", "2") == 0
    # Heads from the names that the images' labels have.
    import open_clip

    options = json.loads(config.read_text())
    whole = open_clip.CLIP(16, options["vision_cfg"], options["text_cfg"]).state_dict()
    save_file({name: value.clone() for name, value in whole.items()}, tmp_path / "pretrained.safetensors")
    (tmp_path / "heads.yaml").write_text(heads.replace("ViT-B-32-quickgelu", str(config)))
    assert run("test", "b-32", 8, "--config", "heads.yaml", "--trainer.limit_test_batches", "2") == 0
    assert run("leaks", "b-32", 8, "--data.adapt", "train", "--pixels") == 0
    # Any other data set of the Hub, on the tiny zoo.
    from datasets import DatasetDict

    for classes, (name, task) in enumerate({"birds": "alpha", "cars": "beta", "signs": "gamma"}.items(), 3):
        names = [f"kind {i}" for i in range(classes)]
        parts = {split: vision_files.table(task, split, names) for split in ("train", "test")}
        DatasetDict(parts).save_to_disk(tmp_path / "hub" / task)
        hub = hub.replace(f"{name}: hub/{name}", f"{task}: hub/{task}")
    (tmp_path / "hub.yaml").write_text(hub.replace("224", "16"))
    network = ["--model.network.config", tiny.network, "--model.network.heads", tiny.heads]
    experts = ["--model.experts", f"{tiny.root}/experts", "--model.base", tiny.base]
    files = ["--config", "configs/tsvm.yaml", "--config", "hub.yaml"]
    assert main(["fit", *files, *experts, *network, *QUIET, "--trainer.max_steps", "1", "--run", "hub-run"]) == 0
