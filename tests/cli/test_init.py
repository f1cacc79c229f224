"""`init`: what it says of folders of experts is true, and what it writes runs as it is."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge.checkpoints import named, rename
from lit_merge.cli.main import main
from tests.clip_models import hugging_face_config, moved, open_clip_config, open_clip_model, state

TASKS = ("alpha", "beta", "gamma")
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
SHORT = [*QUIET, "--trainer.max_steps", "2", "--data.batch_size", "4"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, Tensor]]:
    """Whole small CLIPs in open_clip's names: the base, and an expert of every task."""
    base = state(open_clip_model("tiny"))
    return {"base": base} | {task: moved(base, i) for i, task in enumerate(TASKS)}


def write_experts(models: Mapping[str, Mapping[str, Tensor]]) -> None:
    for task in TASKS:
        Path("experts").mkdir(exist_ok=True)
        save_file(dict(models[task]), Path("experts", f"{task}.safetensors"))


def written(*options: str, folder: str = "experts") -> tuple[dict[str, Any], str]:
    """The configuration that init writes of a folder, and its text."""
    assert main(["init", folder, "--output", "my.yaml", *options]) == 0
    text = Path("my.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text), text


def put_images(tiny: Any) -> None:
    for task in tiny.tasks:
        shutil.copytree(tiny.adapt_folders[task], Path("images", task))
        shutil.copytree(tiny.test_folders[task], Path("labelled", task))


def test_all_that_lies_beside_the_experts_is_found_and_fit_runs(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("base.safetensors", "heads.safetensors", "network.json"):
        shutil.copy(tiny.root / name, name)
    shutil.copytree(tiny.root / "experts", "experts")
    put_images(tiny)
    made, text = written()
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "3 CLIP image encoders in open_clip's names: a vision transformer of width 32, 2 blocks, patches of 8, "
        "images of 16 × 16.",
        "Base: base.safetensors.",
        "Written to my.yaml",
    ]
    assert "TO FILL" not in text
    assert made["model"]["experts"] == {task: f"experts/{task}.safetensors" for task in TASKS}
    assert made["model"]["network"] == {
        "class_path": "OpenClipImageEncoder",
        "init_args": {"config": "network.json", "heads": "heads.safetensors"},
    }
    assert made["data"]["init_args"] == {
        "adapt": {task: f"images/{task}" for task in TASKS},
        "test": {task: f"labelled/{task}" for task in TASKS},
    }
    assert main(["fit", "--config", "my.yaml", *SHORT]) == 0
    report = json.loads(Path("runs/my/metrics.json").read_text())
    assert set(report["mean"]) == {"pretrained", "static", "adapted", "expert"}
    assert main(["init", "experts", "--output", "my.yaml"]) == 2
    Path("my.yaml").write_text("run: my own\n")
    assert main(["init", "experts", "--output", "my.yaml", "--overwrite"]) == 2


@pytest.mark.parametrize("per_task", [False, True])
def test_a_release_as_it_is_unpacked(per_task: bool, tiny: Any) -> None:
    """The task-arithmetic one, and that of TALL-masks with a base next to every expert."""
    for task in TASKS:
        folder = Path("release", f"{task}Val" if per_task else task)
        folder.mkdir(parents=True)
        for source, name in ((tiny.experts[task], "finetuned"), (tiny.base, "zeroshot")):
            weights = {f"model.visual.{name}": value for name, value in load_file(source).items()}
            place = folder / f"nonlinear_{name}.pt" if per_task else folder / f"{name}.pt"
            torch.save(weights, place if per_task or name == "finetuned" else "release/zeroshot.pt")
        torch.save({"weight": load_file(tiny.heads)[task] * 16.0}, f"release/head_{folder.name}.pt")
    shutil.copy(tiny.network, "network.json")
    put_images(tiny)
    made, text = written(folder="release")
    assert "TO FILL" not in text
    assert made["model"]["experts"] == {task: f"release/{task}{'Val' * per_task}" for task in TASKS}
    assert made["model"]["base"] == ("release/alphaVal/nonlinear_zeroshot.pt" if per_task else "release/zeroshot.pt")
    assert made["model"]["network"]["init_args"]["heads"] == "release"
    assert main(["test", "--config", "my.yaml", *QUIET, "--output", "scores.json"]) == 0


@pytest.mark.parametrize("naming", ["open_clip", "openai", "hugging_face"])
def test_clips_of_every_library(naming: str, whole: dict[str, dict[str, Tensor]], place: Path) -> None:
    title = {"open_clip": "open_clip", "openai": "open_clip", "hugging_face": "Hugging Face"}[naming]
    models = {name: rename(weights, named(naming, weights)) for name, weights in canonical(whole).items()}
    write_experts(models)
    config = hugging_face_config("tiny") if naming == "hugging_face" else open_clip_config("tiny")
    Path("config.json" if naming == "hugging_face" else "network.json").write_text(json.dumps(config))
    save_file(models["base"], "pretrained.safetensors")
    Path("classes").mkdir()
    for task in TASKS:
        Path("classes", f"{task}.txt").write_text("cat\ndog\n")
    made, text = written()
    assert f"in {title}'s names" in text
    network = made["model"]["network"]
    assert network["class_path"] == ("HuggingFaceImageEncoder" if naming == "hugging_face" else "OpenClipImageEncoder")
    assert network["init_args"]["config"] == ("config.json" if naming == "hugging_face" else "network.json")
    assert network["init_args"]["heads"]["init_args"] == {
        "classes": {task: f"classes/{task}.txt" for task in TASKS},
        "weights": "pretrained.safetensors",
    }
    assert made["model"]["base"] == "pretrained.safetensors"
    assert "Still to fill in: a folder of images without labels" in text
    assert main(["merge", "--config", "my.yaml", "--dry-run"]) == 0


def test_the_configuration_that_says_how_images_are_prepared(whole: dict[str, dict[str, Tensor]], place: Path) -> None:
    """Trainers save experts without: those of the base would be left out, and CLIP's taken, whatever they are."""
    models = {name: rename(weights, named("hugging_face", weights)) for name, weights in canonical(whole).items()}
    for name, folder in (("base", "base"), *((task, f"experts/{task}") for task in TASKS)):
        Path(folder).mkdir(parents=True)
        save_file(models[name], f"{folder}/model.safetensors")
        Path(folder, "config.json").write_text(json.dumps(hugging_face_config("tiny")))
    assert written()[0]["model"]["network"]["init_args"]["config"] == "experts/alpha/config.json"
    Path("my.yaml").unlink()
    Path("base/preprocessor_config.json").write_text("{}")
    assert written()[0]["model"]["network"]["init_args"]["config"] == "base/config.json"


def canonical(models: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    from lit_merge.checkpoints import canonical_weights

    return {name: canonical_weights(dict(weights)) for name, weights in models.items()}


@pytest.mark.parametrize("activation", ["", "gelu", "quick_gelu"])
def test_a_name_of_open_clip_from_shapes_alone(activation: str) -> None:
    """The tower of ViT-B-32, of which only headers are read; the activation is the user's to say unless files do."""
    from open_clip.model import _build_vision_tower

    options = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
    with torch.device("meta"):
        shapes = _build_vision_tower(512, options, False).state_dict()
    Path("experts").mkdir()
    for task in TASKS:
        write_header(
            {name: tuple(value.shape) for name, value in shapes.items()},
            Path("experts", f"{task}.safetensors"),
            {"activation": activation} if activation else {},
        )
    made, text = written()
    quick = "-quickgelu" * (activation == "quick_gelu")
    assert made["model"]["network"]["init_args"]["config"] == f"ViT-B-32{quick}"
    assert ("# ViT-B-32-quickgelu for OpenAI's weights" in text) == (not activation)
    assert "images of 224 × 224" in text
    assert "base" not in made["model"]


def write_header(shapes: Mapping[str, tuple[int, ...]], path: Path, metadata: dict[str, str]) -> None:
    """A file of float16 weights without their values: a hole of their size."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize(
    "vision",
    [
        {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_proj": "linear"},
    ],
)
def test_towers_of_other_kinds(vision: dict[str, Any]) -> None:
    """ResNets, and timm's, as SigLIP's: their configuration is one of open_clip's that lies there."""
    from open_clip.model import _build_vision_tower

    tower = state(_build_vision_tower(16, vision))
    write_experts({task: moved(tower, seed) for seed, task in enumerate(TASKS)})
    made, text = written()
    assert "# Written by `lit-merge init`: 3 CLIP image encoders in open_clip's names.\n" in text
    assert "TO FILL: the network's configuration (no vision transformer of CLIP" in text
    Path("my.yaml").unlink()
    Path("network.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision}))
    made, text = written()
    assert made["model"]["network"]["init_args"]["config"] == "network.json"
    assert "TO FILL: the network's configuration" not in text


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_texts(kind: str, texts: Any) -> None:
    Path("experts").mkdir()
    for name in (*texts.tasks, "base"):
        shutil.copytree(texts.folder(kind, name), Path("experts", name))
    for split, folder in (("adapt", "texts"), ("test", "labelled")):
        Path(folder).mkdir()
        for task, table in texts.tables(split).items():
            shutil.copy(table, Path(folder, f"{task}.csv"))
    made, text = written()
    assert "TO FILL" not in text
    assert made["model"]["base"] == "experts/base"
    assert set(made["model"]["experts"]) == set(texts.tasks)
    assert made["data"]["init_args"]["tokenizer"] == "experts/base"
    if kind == "bert":
        assert main(["fit", "--config", "my.yaml", *SHORT]) == 0
        assert list(json.loads(Path("runs/my/metrics.json").read_text())["tasks"]) == sorted(texts.tasks)


# peft asks a transformers of today what it used to ask.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_language_models_and_adapters(language_models: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    language_models.save(place)
    made, _ = written()
    assert made == {
        "seed_everything": 0,
        "model": {
            "experts": {task: f"experts/{task}" for task in ("chat", "code", "math")},
            "base": "base",
            "method": {"class_path": "TaskArithmetic", "init_args": {"scaling": 0.3}},
        },
    }
    assert main(["merge", "--config", "my.yaml", "--output", "merged"]) == 0
    language_models.load(Path("merged"))
    for i, task in enumerate(("code", "math")):
        language_models.save_adapter(Path("base"), Path("adapters") / task, seed=i)
    made, _ = written("--overwrite", folder="adapters")
    assert (made["model"]["base"], list(made["model"]["experts"])) == ("base", ["code", "math"])
    shutil.rmtree("base")
    capsys.readouterr()
    assert main(["init", "adapters", "--output", "my.yaml", "--overwrite"]) == 2
    assert "base" in capsys.readouterr().err


def test_what_is_refused(tiny: Any, language_models: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    language_models.save(place, tasks=("math",))
    shutil.copy(tiny.experts["alpha"], "experts/alpha.safetensors")
    Path("empty").mkdir()
    for arguments, said in (
        (["experts"], "of several kinds: CLIP image encoders (alpha), language models (math): give a folder with one"),
        (["empty"], "empty holds no model, expected one for every task"),
        (["nowhere"], "nowhere: no such folder of experts"),
        (["base"], "base is the folder of one model"),
        (["experts", "--output", "my.txt"], "--output my.txt: expected a name that ends in .yaml"),
        (["experts", "--output", "experts/my.yaml"], "lies in experts, all of which is read"),
    ):
        output = [] if "--output" in arguments else ["--output", "my.yaml"]
        assert main(["init", *arguments, *output]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line, line
    assert not Path("my.yaml").exists()
