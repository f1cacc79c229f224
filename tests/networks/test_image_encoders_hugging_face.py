"""Hugging Face's tower and open_clip's are one network: the same features from the same weights, under both names."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from lit_merge import (
    HuggingFaceImageEncoder,
    ImageFolders,
    MergeError,
    MergeWarning,
    OpenClipImageEncoder,
    ZeroShotHeads,
)
from lit_merge.checkpoints import canonical_weights, named, rename
from lit_merge.choose.activations import input_moments
from lit_merge.networks import Network
from tests.clip_models import (
    EMBED,
    hugging_face_config,
    hugging_face_model,
    hugging_face_tower,
    open_clip_config,
    open_clip_model,
    pixels,
    state,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
FORMS = [("B-32", False), ("B-16", False), ("L-14", False), ("B-32", True), ("L-14", True)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Configurations of the small model in both libraries, and heads."""
    save_file({"a": F.normalize(torch.randn(3, EMBED)), "b": F.normalize(torch.randn(4, EMBED))}, tmp_path / "h.st")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(hugging_face_config("tiny")))
    (tmp_path / "open_clip.json").write_text(json.dumps(open_clip_config("tiny")))
    return {"hf": str(tmp_path / "hf"), "open_clip": str(tmp_path / "open_clip.json"), "heads": str(tmp_path / "h.st")}


def both(files: dict[str, str]) -> tuple[Network, Network]:
    heads = files["heads"]
    return OpenClipImageEncoder(files["open_clip"], heads), HuggingFaceImageEncoder(files["hf"], heads)


@pytest.mark.parametrize(("shape", "quick_gelu"), FORMS)
def test_towers_agree_in_both_directions(shape: str, quick_gelu: bool) -> None:
    """Real models on both sides, each with the other's weights, loaded strictly."""
    theirs, ours = hugging_face_tower(shape, quick_gelu=quick_gelu), open_clip_model(shape, quick_gelu).visual
    images = pixels(shape)
    with torch.no_grad():
        for name, source, target in (("open_clip", theirs, ours), ("hugging_face", ours, theirs)):
            inside = canonical_weights(state(source))
            target.load_state_dict(rename(inside, named(name, inside)), strict=True)
            torch.testing.assert_close(theirs(pixel_values=images).image_embeds, ours(images), **CLOSE)
            # And back, to the bit.
            back = rename(canonical_weights(state(target)), named(other(name), inside))
            assert all(torch.equal(back[n], w) for n, w in source.state_dict().items())
            for parameter in (*theirs.parameters(), *ours.parameters()):
                parameter.mul_(0.98)


def other(name: str) -> str:
    return "hugging_face" if name == "open_clip" else "open_clip"


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_whole_models_agree_in_logits(quick_gelu: bool) -> None:
    theirs, ours = hugging_face_model("B-32", quick_gelu), open_clip_model("B-32", quick_gelu)
    images, tokens = pixels("B-32"), torch.randint(3, 49, (3, 8))
    tokens[:, 5] = 49  # the end of a text is its highest token
    with torch.no_grad():
        for name, source, target in (("openai", theirs, ours), ("hugging_face", ours, theirs)):
            inside = canonical_weights(state(source))
            target.load_state_dict(rename(inside, named(name, inside)), strict=True)
            logits = theirs(input_ids=tokens, pixel_values=images).logits_per_image
            torch.testing.assert_close(logits, ours.get_logits(images, tokens)[0], **CLOSE)
            for parameter in (*theirs.parameters(), *ours.parameters()):
                parameter.mul_(0.98)


def test_networks_take_one_bank_weights(files: dict[str, str]) -> None:
    """Canonical weights of a whole model go into both; gradients come out, of image weights only."""
    weights = {n: w.requires_grad_() for n, w in canonical_weights(state(hugging_face_model("tiny"))).items()}
    images = {"a": torch.randint(256, (3, 16, 16), dtype=torch.uint8), "b": torch.randint(256, (2, 3, 16, 16))}
    images["b"] = images["b"].to(torch.uint8)
    gradients = []
    for network in both(files):
        network.check({name: tuple(w.shape) for name, w in weights.items()})
        logits = {task: network(weights, {task: x})[task] for task, x in images.items()}
        loss = torch.stack([value.log_softmax(-1)[:, 0].mean() for value in logits.values()]).sum()
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        gradients.append((logits, dict(zip(weights, found, strict=True))))
    (ours, first), (theirs, second) = gradients
    for task in images:
        torch.testing.assert_close(ours[task], theirs[task], rtol=1e-4, atol=1e-4)
    for name, gradient in first.items():
        assert (gradient is None) == (second[name] is None) == name.startswith(("text.", "logit_scale"))
        if gradient is not None and second[name] is not None:
            torch.testing.assert_close(gradient, second[name], rtol=1e-3, atol=1e-4)


def test_the_network_keeps_no_weights_of_its_own(files: dict[str, str]) -> None:
    network = both(files)[1]
    assert all(value.is_meta for value in network.encoder.state_dict().values())
    assert not any(name.startswith("encoder.") for name in network.state_dict())
    assert not network.train().training


def test_moments_agree(files: dict[str, str]) -> None:
    """What flows into the fused matrix of one library is what flows into the three of the other."""
    weights = canonical_weights(state(hugging_face_tower("tiny")))
    images = torch.randint(256, (6, 16, 16), dtype=torch.uint8)
    found = [input_moments(network, weights, iter(images.split(4))) for network in both(files)]
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 8  # four matrices of both blocks
    for name, moment in found[0].items():
        torch.testing.assert_close(moment, found[1][name], rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_changes_memory_only(files: dict[str, str]) -> None:
    weights = {n: w.requires_grad_() for n, w in canonical_weights(state(hugging_face_tower("tiny"))).items()}
    images = {"a": torch.randint(256, (3, 16, 16), dtype=torch.uint8)}
    network, calls, gradients = both(files)[1], [], []
    block: nn.Module = network.encoder.get_submodule("vision_model.encoder.layers.0.mlp")
    # Before rather than after: computing again stops as soon as it has what it needs.
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    for expected in (1, 2):
        calls.clear()

        def work() -> tuple[Tensor, ...]:
            return torch.autograd.grad(network.logits(images)["a"].square().sum(), list(weights.values()))

        gradients.append(network.holding(weights, work))
        assert len(calls) == expected
        network.checkpoint_gradients()
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


def test_pixels_are_prepared_as_the_preprocessor_says(files: dict[str, str]) -> None:
    network = both(files)[1]
    torch.testing.assert_close(network.mean.flatten(), torch.tensor(open_clip.OPENAI_DATASET_MEAN))
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "size": {"shortest_edge": 16}}
    (Path(files["hf"]) / "preprocessor_config.json").write_text(json.dumps(said))
    for made in (
        HuggingFaceImageEncoder(files["hf"], files["heads"]),
        OpenClipImageEncoder(files["hf"], files["heads"]),
    ):
        assert made.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
        assert made.std.flatten().tolist() == pytest.approx([0.2, 0.2, 0.1])
        assert made.image_size == 16


@pytest.mark.parametrize(
    "said",
    [
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [100.0, 90.0, 80.0], "image_std": [60.0, 60.0, 60.0]},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
        {"size": {"height": 16, "width": 16}, "do_center_crop": False, "resample": 2},
        {"size": 16, "crop_size": 16},
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_pictures_are_prepared_as_transformers_does(
    said: dict[str, Any], nested: bool, files: dict[str, str], tmp_path: Path
) -> None:
    """From a picture that is no square to pixels, against transformers' own processor of the same file."""
    said = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": 16} | said
    name, content = (
        ("processor_config.json", {"image_processor": said}) if nested else ("preprocessor_config.json", said)
    )
    (Path(files["hf"]) / name).write_text(json.dumps(content))
    theirs = CLIPImageProcessorPil.from_pretrained(files["hf"])
    generator = np.random.default_rng(0)
    # An even number of pixels is cropped: of an odd one, transformers leaves more below than open_clip does.
    Image.fromarray(generator.integers(0, 256, (45, 24, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    expected = theirs(Image.open(tmp_path / "a.png"), return_tensors="pt")["pixel_values"]
    for kind in (HuggingFaceImageEncoder, OpenClipImageEncoder):
        network, data = kind(files["hf"], files["heads"]), ImageFolders({"a": str(tmp_path)})
        before = data.fingerprint
        data.suit(network)
        ours = network.prepare(data.unlabelled()["a"].read([0]))
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        assert before != data.fingerprint


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"resample": 0}, "resample"),
        ({"size": {"shortest_edge": 20}}, "size and crop_size"),
        ({"do_center_crop": False}, "size and crop_size"),
    ],
)
def test_what_is_not_done_of_a_preprocessor_is_said(said: dict[str, Any], named: str, files: dict[str, str]) -> None:
    said = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}} | said
    (Path(files["hf"]) / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.warns(MergeWarning, match=f"preprocessor_config.json: {named}: not as in the file"):
        HuggingFaceImageEncoder(files["hf"], files["heads"])


def test_a_factor_that_is_none(files: dict[str, str]) -> None:
    (Path(files["hf"]) / "preprocessor_config.json").write_text('{"rescale_factor": "1/255"}')
    with pytest.raises(
        MergeError, match=r"preprocessor_config.json: rescale_factor is 1/255, expected a number above 0"
    ):
        HuggingFaceImageEncoder(files["hf"], files["heads"])


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_builds_from_a_hugging_face_configuration(files: dict[str, str], quick_gelu: bool) -> None:
    (Path(files["hf"]) / "config.json").write_text(json.dumps(hugging_face_config("tiny", quick_gelu)))
    weights = canonical_weights(state(hugging_face_tower("tiny", quick_gelu=quick_gelu)))
    images = {"a": torch.randint(256, (3, 16, 16), dtype=torch.uint8)}
    made = [kind(files["hf"], files["heads"]) for kind in (OpenClipImageEncoder, HuggingFaceImageEncoder)]
    with torch.no_grad():
        torch.testing.assert_close(*(network(weights, images)["a"] for network in made), rtol=1e-4, atol=1e-4)


def test_zero_shot_heads_of_a_hugging_face_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its own configuration and weights; the rows are what transformers itself answers."""
    monkeypatch.setenv("LIT_MERGE_CACHE", str(tmp_path / "cache"))
    options = hugging_face_config("tiny")
    options["text_config"] |= {"vocab_size": 49408, "max_position_embeddings": 12}
    model = CLIPModel(CLIPConfig(**options)).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "classes.txt").write_text("cat\nsmall dog\n")
    made = ZeroShotHeads({"a": str(tmp_path / "classes.txt")}, str(tmp_path / "model" / "model.safetensors"), ["a {}."])
    heads = HuggingFaceImageEncoder(str(tmp_path / "model"), made).heads
    tokens = open_clip.SimpleTokenizer(context_length=12)(["a cat.", "a small dog."])
    with torch.no_grad():
        expected = F.normalize(model.get_text_features(input_ids=tokens).pooler_output, dim=-1)
    torch.testing.assert_close(heads.rows[0], expected, **CLOSE)
    assert heads.logit_scale == pytest.approx(model.logit_scale.exp().item())


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"model_type": "bert"}, "is a configuration of bert: expected Hugging Face's of a CLIP"),
        ({"vision_config": 3}, "vision_config is 3, expected an object of options"),
        ({"vision_config": {"hidden_size": 30, "num_attention_heads": 4}}, "is no configuration of a CLIP: .*30"),
    ],
)
def test_bad_configurations(change: dict[str, Any], shown: str, files: dict[str, str]) -> None:
    (Path(files["hf"]) / "config.json").write_text(json.dumps(hugging_face_config("tiny") | change))
    with pytest.raises(MergeError, match=shown) as error:
        HuggingFaceImageEncoder(files["hf"], files["heads"])
    assert files["hf"] in str(error.value)


def test_configurations_that_are_not_there(files: dict[str, str], tmp_path: Path) -> None:
    for config, shown in (
        ("openai/clip-vit-none", "nor a model in Hugging Face's cache: give a folder with config.json"),
        ("no such/model name", "nor a model in Hugging Face's cache"),
        (str(tmp_path), "config.json: no such file"),
    ):
        with pytest.raises(MergeError, match=shown):
            HuggingFaceImageEncoder(config, files["heads"])
    odd = hugging_face_config("tiny")
    odd["text_config"]["hidden_act"] = "quick_gelu"
    (tmp_path / "config.json").write_text(json.dumps(odd))
    with pytest.raises(MergeError, match="open_clip has no CLIP with hidden_act gelu and quick_gelu"):
        OpenClipImageEncoder(str(tmp_path), files["heads"])


def test_weights_of_a_model_without_a_projection(files: dict[str, str]) -> None:
    weights = canonical_weights(state(hugging_face_tower("tiny", projection=False)))
    for network in both(files):
        with pytest.raises(MergeError, match="the network has a weight proj, which the experts lack"):
            network.check({name: tuple(w.shape) for name, w in weights.items()})


def test_weights_beside_the_model_are_told_of(files: dict[str, str]) -> None:
    weights = canonical_weights(state(hugging_face_tower("tiny")) | {"classifier.weight": torch.ones(2, 2)})
    for network in both(files):
        with pytest.raises(MergeError, match=r"the experts have a weight classifier\.weight, which the network lacks"):
            network.check({name: tuple(w.shape) for name, w in weights.items()})


def test_without_transformers(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MergeError, match=r"need transformers: pip install 'lit_merge\[hf\]'"):
        HuggingFaceImageEncoder(files["hf"], files["heads"])
