"""The open_clip tower with weights handed in, and its heads."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lit_merge import MergeError, MergeWarning, OpenClipImageEncoder
from lit_merge.checkpoints import open_checkpoint
from lit_merge.networks import CosineHeads
from lit_merge.networks.clip_configurations import open_clip_options
from tests.clip_models import EMBED, hugging_face_model, open_clip_config, open_clip_model


def test_logits_are_those_of_the_open_clip_model_itself(tiny: Any) -> None:
    """Against CLIP as open_clip builds it from the same configuration, with the expert's weights loaded."""
    config = json.loads(Path(tiny.network).read_text())
    text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text).eval()
    weights = load_file(tiny.experts["beta"])
    clip.visual.load_state_dict(weights)
    images = torch.randint(256, (5, 16, 16), dtype=torch.uint8)
    network = tiny.encoder()
    with torch.no_grad():
        logits = network(weights, {"beta": images})["beta"]
        pixels = ((images / 255)[:, None].expand(-1, 3, -1, -1) - 0.5) / 0.3
        features = clip.encode_image(pixels, normalize=True)
        expected = 16.0 * features @ load_file(tiny.heads)["beta"].T
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_tower_that_answers_tokens_too(tmp_path: Path) -> None:
    """As CoCa's: features are the first of what it answers."""
    config = open_clip_config("tiny")
    config["vision_cfg"] |= {"output_tokens": True}
    (tmp_path / "network.json").write_text(json.dumps(config))
    save_file({"a": torch.eye(2, EMBED)}, tmp_path / "heads.safetensors")
    network = OpenClipImageEncoder(str(tmp_path / "network.json"), str(tmp_path / "heads.safetensors"))
    tower = open_clip.CLIP(**config).eval().visual
    images = torch.randint(0, 256, (3, 3, network.image_size, network.image_size), dtype=torch.uint8)
    found = network.holding(tower.state_dict(), lambda: network.features({"a": images[:2], "b": images[2:]}))
    torch.testing.assert_close(torch.cat([found["a"], found["b"]]), tower(network.prepare(images))[0])


def test_tasks_share_one_forward_and_do_not_mix(tiny: Any) -> None:
    network, weights = tiny.encoder(), load_file(tiny.base)
    inputs = {task: torch.randint(256, (n, 16, 16), dtype=torch.uint8) for n, task in enumerate(tiny.tasks, 2)}
    together = network(weights, inputs)
    for task, images in inputs.items():
        torch.testing.assert_close(together[task], network(weights, {task: images})[task], rtol=1e-4, atol=1e-4)


def test_the_network_keeps_no_weights_of_its_own(tiny: Any) -> None:
    network, weights = tiny.encoder(), load_file(tiny.base)
    images = {"alpha": torch.randint(256, (2, 16, 16), dtype=torch.uint8)}
    first = network(weights, images)["alpha"]
    assert torch.equal(tiny.encoder()(weights, images)["alpha"], first)
    assert all(value.is_meta for value in network.encoder.state_dict().values())
    assert not any(name.startswith("encoder.") for name in network.state_dict())
    with pytest.raises(RuntimeError, match="meta"):
        network.logits(images)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.train().training


def test_colour_and_grey_images(tiny: Any) -> None:
    network = tiny.encoder()
    grey = torch.randint(256, (2, 16, 16), dtype=torch.uint8)
    assert torch.equal(network.prepare(grey), network.prepare(grey[:, None].expand(-1, 3, -1, -1)))
    # What somebody has normalised already.
    with pytest.raises(MergeError, match=r"images of float32: expected uint8, 0 to 255, which the network normalises"):
        network(load_file(tiny.experts["beta"]), {"beta": network.prepare(grey)})


GOOD = '{"embed_dim": 8, "vision_cfg": {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}, %s}'


def test_weights_that_are_not_the_networks(tiny: Any) -> None:
    network, shapes = tiny.encoder(), {n: tuple(v.shape) for n, v in load_file(tiny.base).items()}
    network.check(shapes)
    with pytest.raises(MergeError, match="more") as error:
        network.check(shapes | {"more": (1,)})
    assert error.value.weight == "more"
    with pytest.raises(MergeError, match="proj"):
        network.check({name: shape for name, shape in shapes.items() if name != "proj"})
    with pytest.raises(MergeError, match=r"\[32, 16\] in the network and \[3, 3\] in the experts"):
        network.check(shapes | {"proj": (3, 3)})


def test_a_named_model_of_open_clip(tiny: Any) -> None:
    network = OpenClipImageEncoder("ViT-S-32-alt", tiny.heads)
    assert network.image_size == 224
    assert "transformer.resblocks.0.attn.in_proj_weight" in network.encoder.state_dict()


@pytest.mark.parametrize(
    ("name", "mean", "std", "resize_mode", "interpolation"),
    [
        ("ViT-B-16-SigLIP", 0.5, 0.5, "squash", "bicubic"),
        ("MobileCLIP-S1", 0.0, 1.0, "shortest", "bilinear"),
        ("ViT-L-14:laion2b_s32b_b82k", 0.5, 0.5, "shortest", "bicubic"),
    ],
)
def test_images_of_a_named_model_are_prepared_as_its_weights_want_them(
    name: str, mean: float, std: float, resize_mode: str, interpolation: str, tmp_path: Path
) -> None:
    """Not as OpenAI's CLIP, whatever the model."""
    save_file({"a": torch.eye(2, 768)}, tmp_path / "heads.safetensors")
    network = OpenClipImageEncoder(name, str(tmp_path / "heads.safetensors"))
    assert network.mean.flatten().tolist() == [mean] * 3
    assert network.std.flatten().tolist() == [std] * 3
    assert (network.geometry.resize_mode, network.geometry.interpolation) == (resize_mode, interpolation)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_another_activation_than_the_experts_is_said(tmp_path: Path) -> None:
    """No weight shows it, but whole modules do, zip or older, TorchScript as OpenAI's, and Hugging Face's folders."""
    files: dict[str, dict[str, str]] = {"gelu": {}, "quick_gelu": {}}
    save_file({"a": torch.eye(2, EMBED)}, tmp_path / "heads.safetensors")
    for act, sources in files.items():
        model = open_clip_model("tiny", act == "quick_gelu")
        folder = tmp_path / act
        folder.mkdir()
        sources |= {name: f"{folder}/{name}.pt" for name in ("zip", "older", "script", "weights")}
        torch.save(model, sources["zip"])
        torch.save(model, sources["older"], _use_new_zipfile_serialization=False)
        torch.jit.script(model.visual).save(sources["script"])
        torch.save(model.state_dict(), sources["weights"])
        hugging_face_model("tiny", act == "quick_gelu").save_pretrained(folder / "folder")
        sources["folder"] = f"{folder}/folder"
        (folder / "network.json").write_text(json.dumps(open_clip_config("tiny", act == "quick_gelu")))
    for own, config in (("gelu", "gelu/network.json"), ("quick_gelu", "quick_gelu/folder")):
        network = OpenClipImageEncoder(str(tmp_path / config), str(tmp_path / "heads.safetensors"))
        opened = {act: {name: open_checkpoint(file) for name, file in one.items()} for act, one in files.items()}
        network.check_files(opened.pop(own))
        ((theirs, others),) = opened.items()
        said = f"zip, older, script, folder were trained with {theirs}, and the network computes {own}"
        with pytest.warns(MergeWarning, match=said):
            network.check_files(others)


def test_a_model_whose_weights_differ_in_this() -> None:
    with pytest.warns(MergeWarning, match="but laion2b_s32b_b82k take them in another way: .* ViT-L-14:laion2b_s32b_b"):
        said = open_clip_options("ViT-L-14")["preprocess_cfg"]
    assert said["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert [open_clip_options(f"ViT-B-32{tag}").get("quick_gelu") for tag in ("", ":openai")] == [None, True]
    with pytest.raises(MergeError, match="knows no such weights of ViT-B-32; the nearest is laion400m_e3"):
        open_clip_options("ViT-B-32:laion400m_e3")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"),
        ("[1]", "expected a JSON object"),
        ("{}", "embed_dim"),
        ('{"model_cfg": 3}', "model_cfg"),
        ('{"embed_dim": "x", "vision_cfg": []}', "is no open_clip configuration"),
        ('{"embed_dim": 1e30, "vision_cfg": {}}', "embed_dim is 1e[+]30, expected at most"),
        ('{"embed_dim": NaN, "vision_cfg": {}}', "embed_dim is nan"),
        ('{"embed_dim": 8, "vision_cfg": {"layers": 1000000}}', "layers is 1000000, expected at most 1,000"),
        ('{"embed_dim": 8, "vision_cfg": {"layers": -1, "width": 0}}', "is no open_clip configuration"),
        (GOOD % '"preprocess_cfg": {"mean": "abc"}', "mean is abc, expected three numbers"),
        (GOOD % '"preprocess_cfg": {"mean": [0.1, null, 1]}', r"mean is \[0.1, None, 1\], expected three numbers"),
        (GOOD % '"preprocess_cfg": {"std": [1, 0, 1]}', r"std is \[1, 0, 1\], expected three numbers above 0"),
        (
            GOOD % '"preprocess_cfg": {"resize_mode": "crop"}',
            "resize_mode is crop, expected one of shortest, squash, long",
        ),
        (GOOD % '"preprocess_cfg": {"interpolation": 3}', "interpolation is 3, expected one of bicubic, bilinear"),
        (GOOD % '"preprocess_cfg": 3', "is no open_clip configuration"),
        (GOOD % '"preprocess_cfg": 0', "is no open_clip configuration"),
    ],
)
def test_bad_configurations(text: str, said: str, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "network.json"
    path.write_text(text)
    with pytest.raises(MergeError, match=said) as error:
        OpenClipImageEncoder(str(path), tiny.heads)
    assert str(path) in str(error.value)


def test_heads(tmp_path: Path) -> None:
    rows = F.normalize(torch.randn(4, 6))
    save_file({"a": rows}, tmp_path / "heads.safetensors")
    heads = CosineHeads.load(tmp_path / "heads.safetensors")
    assert heads.logit_scale == 100.0
    assert heads.classes("a") == 4
    features = torch.randn(3, 6)
    torch.testing.assert_close(heads(features, "a"), 100 * F.normalize(features) @ rows.T)
    torch.testing.assert_close(heads(7 * features, "a"), heads(features, "a"))
    with pytest.raises(MergeError, match="no head for task 'b'"):
        heads.classes("b")
    with pytest.raises(MergeError, match="6 wide, the encoder's features 5"):
        heads(torch.randn(3, 5), "a")
    save_file({"a": torch.zeros(4)}, tmp_path / "flat.safetensors")
    with pytest.raises(MergeError, match=r"flat\.safetensors: head a has shape \[4\]"):
        CosineHeads.load(tmp_path / "flat.safetensors")


def test_a_label_beyond_the_head_is_refused(tiny: Any) -> None:
    for head in ({}, {"head": "mixed"}):
        with pytest.raises(MergeError, match="task alpha has a label 3, its head 3 classes") as error:
            tiny.encoder().rows({"task": "alpha", "labels": torch.tensor([0, 3]), **head})
        assert error.value.task == "alpha"
    rows = tiny.encoder().rows({"task": "gamma", "labels": torch.tensor([0, 4]), "head": "mixed"})
    assert rows.tolist() == [7, 11]
