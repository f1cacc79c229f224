"""Which naming a file has, from its names alone; and what is said of files that have two, or half of one."""

import pytest
import torch
from torch import Tensor

from lit_merge import MergeError
from lit_merge.checkpoints import PLAIN, Naming, StateDict, canonical, canonical_weights, detect, named, rename
from lit_merge.checkpoints.families import FAMILIES, clip_families
from lit_merge.checkpoints.families.family import TranslatedClip
from tests.clip_models import hugging_face_model, hugging_face_tower, open_clip_model, state

PREFIXES = ("", "module.", "model.", "image_encoder.model.", "module.model.")


@pytest.fixture(scope="module")
def clip() -> dict[str, Tensor]:
    return state(open_clip_model("tiny"))


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    return state(hugging_face_model("tiny"))


def tower_of(clip: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("visual."): w for name, w in clip.items() if name.startswith("visual.")}


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_tables_are_one_to_one() -> None:
    for family in (one for one in FAMILIES if isinstance(one, TranslatedClip)):
        names = [name for place in family.places.values() for name in place.names]
        assert len(set(names)) == len(names)
        for weight in (name.replace("#", "11") for name in family.places):
            place = family.place(weight, family.image, "")
            assert place is not None
            assert {family.weight(name, family.image, "") for name in place.names} == {weight}


def test_families_are_told_apart() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    found = [family for family in clip_families() if not family.found_as]
    for field in ("signature", "signs"):
        parts = [part for family in found for part in getattr(family, field)]
        assert len(set(parts)) == len(parts)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_open_clip_files(prefix: str, clip: dict[str, Tensor]) -> None:
    tower = tower_of(clip)
    assert detect(prefixed(clip, prefix)) == Naming("open_clip", prefix, "visual.")
    assert detect(prefixed(tower, prefix)) == Naming("open_clip", prefix)
    assert detect(prefixed(tower, f"{prefix}visual.")) == Naming("open_clip", prefix, "visual.")
    for weights in (clip, tower, prefixed(tower, "visual.")):
        found = canonical_weights(prefixed(weights, prefix))
        assert same({name: found[name] for name in tower}, tower)
        assert same(rename(found, detect(prefixed(weights, prefix))), prefixed(weights, prefix))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_hugging_face_files(prefix: str, theirs: dict[str, Tensor]) -> None:
    """Whole model, vision model with projection, and without, as transformers 5 and as 4 named it."""
    vision = {name: w for name, w in theirs.items() if name.startswith(("vision_model.", "visual_projection."))}
    bare = {name.removeprefix("vision_model."): w for name, w in vision.items() if name.startswith("vision_model.")}
    assert bare.keys() == state(hugging_face_tower("tiny", projection=False)).keys()
    whole = canonical_weights(theirs)
    for weights in (theirs, vision, bare, prefixed(bare, "vision_model.")):
        found = canonical_weights(prefixed(weights, prefix))
        assert same(found, {name: whole[name] for name in found})
        assert same(rename(found, detect(prefixed(weights, prefix))), prefixed(weights, prefix))


def test_weights_get_the_names_of_the_real_models(clip: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    inside, ours = canonical_weights(theirs), canonical_weights(clip)
    assert inside.keys() == ours.keys()
    assert {name: w.shape for name, w in inside.items()} == {name: w.shape for name, w in ours.items()}
    for naming, expected in (("open_clip", clip), ("openai", clip), ("hugging_face", theirs)):
        assert rename(inside, named(naming, inside)).keys() == expected.keys()
    tower = tower_of(clip)
    assert named("open_clip", tower).identity
    assert rename(tower, named("openai", tower)).keys() == prefixed(tower, "visual.").keys()
    assert same(rename(inside, named("canonical", inside)), inside)


def test_a_text_tower_of_its_own(clip: dict[str, Tensor]) -> None:
    """open_clip's CustomTextCLIP, and the task-arithmetic release, which drops the text transformer alone."""
    custom = {n if n.startswith("visual.") or n == "logit_scale" else f"text.{n}": w for n, w in clip.items()}
    assert same(canonical_weights(custom), canonical_weights(clip))
    assert same(rename(canonical_weights(custom), detect(custom)), custom)
    part = {f"model.{n}": w for n, w in clip.items() if not n.startswith("transformer.")}
    assert same(rename(canonical_weights(part), detect(part)), part)


def test_buffers_are_no_weights(clip: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    old = theirs | {
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
        "text_model.embeddings.position_ids": torch.arange(8)[None],
    }
    assert same(canonical_weights(old), canonical_weights(theirs))
    release = clip | {"attn_mask": torch.zeros(8, 8), "input_resolution": torch.tensor(16)}
    release |= {"context_length": torch.tensor(8), "vocab_size": torch.tensor(50)}
    assert same(canonical_weights(release), canonical_weights(clip))


def test_what_lies_beside_the_model_keeps_its_name(theirs: dict[str, Tensor]) -> None:
    whole = prefixed(theirs, "clip.") | {"classifier.weight": torch.ones(3, 2)}
    found = canonical_weights(whole)
    assert "other.classifier.weight" in found
    assert same(rename(found, detect(whole)), whole)
    assert "classifier.weight" in rename(found, named("open_clip", found))


def test_other_models_keep_their_names(clip: dict[str, Tensor]) -> None:
    """No list of architectures: what is no CLIP is not renamed; nor are two CLIPs in one file."""
    bert = {"bert.encoder.layer.0.attention.self.query.weight": torch.ones(2, 2), "text.logit": torch.ones(1)}
    siglip = {"vision_model.embeddings.patch_embedding.weight": torch.ones(2, 3, 2, 2)}
    for weights in (bert, siglip, prefixed(clip, "student.") | prefixed(clip, "teacher.")):
        assert detect(weights) == PLAIN
        checkpoint = StateDict(weights)
        assert canonical(checkpoint) is checkpoint
    for naming in ("open_clip", "openai", "hugging_face"):
        with pytest.raises(MergeError, match=r"these weights \(bert.encoder.* are not a CLIP's"):
            named(naming, bert)


def test_towers_of_other_kinds_in_a_whole_model(clip: dict[str, Tensor]) -> None:
    resnet = {"module.visual.layer1.0.conv1.weight": torch.ones(2, 2), "module.logit_scale": torch.ones(())}
    assert detect([*resnet, "module.visual.trunk.self_attn.weight"]).image == "visual."
    found = canonical_weights(resnet | {"module.ln_final.bias": torch.ones(2)})
    assert found.keys() == {"layer1.0.conv1.weight", "logit_scale", "text.ln_final.bias"}
    with pytest.raises(MergeError, match=r"CLIP has no weight for layer1\.0\.conv1\.weight"):
        rename(found, named("hugging_face", found))


def test_unknown_namings(clip: dict[str, Tensor]) -> None:
    said = "naming='openclip': expected one of open_clip, openai, hugging_face, canonical; the nearest is open_clip"
    with pytest.raises(MergeError, match=said):
        named("openclip", canonical_weights(clip))


def test_a_part_that_is_missing(theirs: dict[str, Tensor]) -> None:
    k = "vision_model.encoder.layers.1.self_attn.k_proj.weight"
    with pytest.raises(MergeError, match=r"f\.pt has .*1\.self_attn\.q_proj\.weight but no weight .*k_proj") as error:
        canonical(StateDict({name: w for name, w in theirs.items() if name != k}, "f.pt"))
    assert error.value.weight == k
    with pytest.raises(MergeError, match=r"k_proj\.weight is .*float16.*\[32, 32\].* is torch.float32 .*\[32, 32\]"):
        canonical(StateDict(theirs | {k: theirs[k].half()}, "f.pt"))


def test_files_converted_by_half(clip: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    tower = tower_of(clip)
    vision = state(hugging_face_tower("tiny"))
    both = {**tower, **vision}
    blocks = {name: w for name, w in tower.items() if "resblocks" not in name} | {
        name.removeprefix("vision_model."): w for name, w in vision.items() if "layers" in name
    }
    reverse = vision | {"vision_model.encoder.resblocks.0.attn.in_proj_weight": torch.ones(2, 2)}
    for weights, foreign in ((both, "class_embedding"), (blocks, "self_attn"), (reverse, "in_proj")):
        with pytest.raises(MergeError, match=r"as open_clip.*Hugging Face|as Hugging Face.*open_clip") as error:
            canonical(StateDict(weights, "half.safetensors"))
        assert str(error.value).startswith("half.safetensors has ")
        assert foreign in str(error.value)
        assert "convert it whole" in str(error.value)
