"""Merged weights, and those of a task, load where the models came from, and give the outputs of the bank's weights."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import CART, MergeError, OpenClipImageEncoder, TaskBank, build_bank
from lit_merge.cli.main import main
from lit_merge.networks import HuggingFaceTextEncoder
from lit_merge.networks.text_encoders import SEGMENT
from tests.clip_models import (
    hugging_face_config,
    hugging_face_model,
    moved,
    open_clip_config,
    open_clip_model,
    pixels,
    state,
)

TASKS = ("alpha", "beta", "gamma")


def export(root: Path, output: Path, *options: str) -> int:
    return main(["export", "--model.bank", f"{root}/bank", "--output", str(output), *options])


def saved(root: Path, experts: dict[str, Any]) -> TaskBank:
    bank = build_bank(experts, method=CART(rank_ratio=0.3, scaling=0.9))
    bank.save(root / "bank")
    return bank


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TaskBank]:
    """Three whole CLIPs of open_clip, their bank, their configuration, and the pretrained one."""
    root = tmp_path_factory.mktemp("clips")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = state(open_clip_model("tiny"))
    save_file(base, root / "base.safetensors")
    (root / "network.json").write_text(json.dumps(open_clip_config("tiny")))
    return root, saved(root, {task: moved(base, seed) for seed, task in enumerate(TASKS)})


def features(model: Any, weights: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Of images and of texts, by open_clip or by transformers."""
    torch.manual_seed(0)
    images, texts = pixels("tiny"), torch.randint(1, 50, (2, 8))
    if weights is not None:
        model.load_state_dict(weights)
    with torch.no_grad():
        if isinstance(model, open_clip.CLIP):
            return model.encode_image(images), model.encode_text(texts)
        found = model(input_ids=texts, pixel_values=images)
    scale = found.text_embeds.norm(), found.image_embeds.norm()
    assert all(one > 0 for one in scale)
    return found.image_embeds, found.text_embeds


@pytest.mark.parametrize("task", [None, "beta"])
def test_open_clip_loads_its_folder(task: str | None, clips: tuple[Path, TaskBank], tmp_path: Path) -> None:
    root, bank = clips
    network = ["--model.network", "OpenClipImageEncoder", "--model.network.config", f"{root}/network.json"]
    network += ["--model.network.heads", "none.safetensors"]
    chosen = [] if task is None else ["--task", task]
    assert export(root, tmp_path / "out", "--format", "open_clip", *network, *chosen) == 0
    loaded = open_clip.create_model(f"local-dir:{tmp_path}/out").eval()
    expected = features(open_clip_model("tiny"), bank.merge() if task is None else bank.expert(task))
    for found, one in zip(features(loaded), expected, strict=True):
        torch.testing.assert_close(found, one)


def test_an_open_clip_bank_as_a_folder_of_hugging_face(clips: tuple[Path, TaskBank], tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    root, bank = clips
    network = ["--model.network", "OpenClipImageEncoder", "--model.network.config", f"{root}/network.json"]
    network += ["--model.network.heads", "none.safetensors"]
    assert export(root, tmp_path / "out", "--format", "hugging_face", *network) == 0
    loaded, said = CLIPModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    merged = open_clip_model("tiny")
    expected = features(merged, bank.merge())
    for found, one in zip(features(loaded.eval()), expected, strict=True):
        torch.testing.assert_close(found, torch.nn.functional.normalize(one, dim=-1), rtol=1e-4, atol=1e-5)
    assert CLIPImageProcessor.from_pretrained(tmp_path / "out").crop_size["height"] == 16


def test_folders_say_how_images_are_prepared(tmp_path: Path) -> None:
    """Both ways, as the network does: squashed and bilinear, with the pixels' own mean."""
    from lit_merge.merge.clip_folders import configurations, write_configurations
    from lit_merge.networks.clip_configurations import open_clip_options

    said = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "resize_mode": "squash", "interpolation": "bilinear"}
    options = open_clip_config("tiny") | {"preprocess_cfg": said}
    for library, name in (("open_clip", "open_clip_config.json"), ("hugging_face", "config.json")):
        folder = tmp_path / library
        folder.mkdir()
        write_configurations(folder, configurations(library, options, True, "it"))
        assert open_clip_options(str(folder / name))["preprocess_cfg"] == said
    one = options | {"preprocess_cfg": {"mean": 0, "std": 1}}  # of all colours, as open_clip takes it
    assert configurations("open_clip", one, True, "it")["open_clip_config.json"]["preprocess_cfg"]["mean"] == [0, 0, 0]
    with pytest.raises(MergeError, match="it: Hugging Face's CLIP has no resize_mode longest: take --format open_clip"):
        configurations("hugging_face", options | {"preprocess_cfg": {"resize_mode": "longest"}}, True, "it")


def test_a_tower_gets_its_text_tower_from_the_base(
    clips: tuple[Path, TaskBank], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Experts of image towers of Hugging Face, as whole CLIPs of open_clip, and alone as they came."""
    from transformers import CLIPVisionModelWithProjection

    torch.manual_seed(1)
    whole = hugging_face_model("tiny")
    (tmp_path / "base").mkdir()
    whole.save_pretrained(tmp_path / "base")
    tower = {n: v for n, v in state(whole).items() if n.startswith(("vision_model", "visual_projection"))}
    bank = saved(tmp_path, {task: moved(tower, seed) for seed, task in enumerate(TASKS)})
    base = ["--model.base", f"{tmp_path}/base"]
    assert export(tmp_path, tmp_path / "clip", "--format", "open_clip", *base) == 0
    loaded = open_clip.create_model(f"local-dir:{tmp_path}/clip").eval()
    expected = features(whole, {**state(whole), **bank.merge()})
    for found, one in zip(features(loaded), expected, strict=True):
        torch.testing.assert_close(torch.nn.functional.normalize(found, dim=-1), one, rtol=1e-4, atol=1e-5)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(hugging_face_config("tiny")))
    network = ["--model.network", "HuggingFaceImageEncoder", "--model.network.config", str(config)]
    network += ["--model.network.heads", "none.safetensors"]
    assert export(tmp_path, tmp_path / "tower", "--format", "hugging_face", *network) == 0
    alone = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "tower").eval()
    torch.manual_seed(0)
    found = torch.nn.functional.normalize(alone(pixels("tiny")).image_embeds, dim=-1)
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    assert export(tmp_path, tmp_path / "none", "--format", "open_clip", *network) == 2
    assert "these weights are an image tower: give a base with the text tower" in capsys.readouterr().err
    assert export(tmp_path, tmp_path / "none", "--format", "hugging_face") == 2
    assert "name its configuration by --model.network" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_plain_state_dict(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = saved(tmp_path, tiny.experts)
    for options, expected in (
        (["--format", "merged"], bank.merge()),
        (["--format", "task", "--task", "beta"], bank.expert("beta")),
        (["--format", "merged", "--naming", "hugging_face"], bank.merge(naming="hugging_face")),
    ):
        assert export(tmp_path, tmp_path / "out.pt", *options, "--overwrite") == 0
        found = torch.load(tmp_path / "out.pt", weights_only=True, mmap=True)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    torch.save({"mine": torch.ones(2)}, tmp_path / "mine.pt")
    assert export(tmp_path, tmp_path / "mine.pt", *options, "--overwrite") == 2
    assert "mine.pt was not written by `lit-merge export --format merged`" in capsys.readouterr().err


def test_a_task_as_a_folder_has_its_own_classifier(texts: Any, tmp_path: Path) -> None:
    """What from_pretrained loads is the task's classifier, whole."""
    from transformers import AutoModelForSequenceClassification

    experts = {task: str(texts.root / "bert" / task) for task in ("ham", "mood", "topic")}
    files = [f"--model.experts.{task}={path}" for task, path in experts.items()]
    options = ["--model.method", "CART", "--model.method.rank_ratio", "0.3", "--model.exclude", '["classifier*"]']
    task = "mood"
    assert main(["export", *files, *options, "--format", "task", "--task", task, "--output", f"{tmp_path}/out"]) == 0
    loaded, said = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not said["missing_keys"]
    own = load_file(texts.root / "bert" / task / "model.safetensors")
    assert torch.equal(loaded.classifier.weight, own["classifier.weight"])
    assert not torch.equal(
        loaded.state_dict()["bert.encoder.layer.0.output.dense.weight"], own["bert.encoder.layer.0.output.dense.weight"]
    )


def run_onnx(path: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path))
    names = [one.name for one in session.get_outputs()]
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


def of_one_block(tiny: Any, root: Path) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """A configuration, and experts of it: exporters take seconds for every block."""
    options = json.loads(Path(tiny.network).read_text())
    options["vision_cfg"]["layers"] = 1
    (root / "network.json").write_text(json.dumps(options))
    experts = {task: load_file(path) for task, path in tiny.experts.items()}
    kept = {task: {n: v for n, v in one.items() if "resblocks.1" not in n} for task, one in experts.items()}
    return str(root / "network.json"), kept


def test_programs_of_images(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, experts = of_one_block(tiny, tmp_path)
    bank = saved(tmp_path, experts)
    network = ["--model.network", "OpenClipImageEncoder", "--model.network.config", config]
    network += ["--model.network.heads", tiny.heads]
    encoder = OpenClipImageEncoder(config, tiny.heads)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    expected = {task: encoder(bank.merge(naming="canonical"), {task: images})[task] for task in tiny.tasks}
    assert export(tmp_path, tmp_path / "out.pt2", "--format", "torch_export", *network) == 0
    found = torch.export.load(tmp_path / "out.pt2").module()(images)
    assert found.keys() == expected.keys()
    for task in found:
        torch.testing.assert_close(found[task], expected[task], rtol=1e-4, atol=1e-5)
    assert export(tmp_path, tmp_path / "out.onnx", "--format", "torch_export", *network) == 2
    assert "expected a name that ends in .pt2" in capsys.readouterr().err
    assert export(tmp_path, tmp_path / "other.pt2", "--format", "torch_export") == 2
    assert "format=torch_export has heads in it: name encoder and heads by --model.network" in capsys.readouterr().err
    (tmp_path / "mine.pt2").write_text("mine")
    mine = [tmp_path, tmp_path / "mine.pt2", "--format", "torch_export", *network, "--overwrite"]
    assert export(*mine) == 2
    assert "mine.pt2 was not written by `lit-merge export --format torch_export`" in capsys.readouterr().err
    pytest.importorskip("onnxscript")
    # One task, by its own weights.
    only = ["--format", "onnx", "--task", "beta", *network]
    assert export(tmp_path, tmp_path / "out.onnx", *only) == 0
    outputs = run_onnx(tmp_path / "out.onnx", {"images": images})
    alone = encoder(bank.expert("beta", naming="canonical"), {"beta": images})
    assert outputs.keys() == {"beta"}
    torch.testing.assert_close(outputs["beta"], alone["beta"], rtol=1e-4, atol=1e-5)
    assert export(tmp_path, tmp_path / "out.onnx", *only) == 2
    assert "out.onnx exists: pass --overwrite" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_programs_of_texts(tmp_path: Path) -> None:
    """Tokens as transformers' tokenizers give them; the classifiers are the experts'."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {}
    for i, task in enumerate(("ham", "mood")):
        torch.manual_seed(i)
        model = BertForSequenceClassification(BertConfig(vocab_size=60, num_labels=2 + i, **sizes))
        model.save_pretrained(tmp_path / task)
        experts[task] = str(tmp_path / task)
    command = ["export", *(f"--model.experts.{task}={path}" for task, path in experts.items())]
    command += ["--model.method", "WeightAveraging"]
    command += ["--model.network", "HuggingFaceTextEncoder", "--model.network.config", experts["ham"]]
    assert main([*command, "--output", f"{tmp_path}/bank"]) == 0
    bank = TaskBank.load(tmp_path / "bank")
    tokens, mask = torch.randint(4, 60, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    kinds = torch.zeros_like(tokens)
    kinds[:, 4:] = 1
    encoder = HuggingFaceTextEncoder(experts["ham"], heads=experts)
    inputs = (tokens + SEGMENT * kinds).masked_fill(mask == 0, -1)
    expected = {task: encoder(bank.merge(naming="canonical"), {task: inputs})[task] for task in experts}
    assert main([*command, "--format", "torch_export", "--output", f"{tmp_path}/out.pt2"]) == 0
    extra = {"class_names.json": ""}
    found = torch.export.load(tmp_path / "out.pt2", extra_files=extra).module()(tokens, mask, kinds)
    assert json.loads(extra["class_names.json"])["ham"] == ["LABEL_0", "LABEL_1"]
    for task in expected:
        torch.testing.assert_close(found[task], expected[task], rtol=1e-4, atol=1e-5)
