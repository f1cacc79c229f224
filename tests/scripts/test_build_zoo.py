"""The zoo's builder and the files that it made: nothing is downloaded, rendered or trained here."""

import hashlib
import importlib.util
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "lit_merge" / "zoo" / "suite8"
sys.path.insert(0, str(ROOT / "scripts"))
needs_torch = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip is missing")

from zoo import alphabets, domains, splits, tasks  # noqa: E402
from zoo.licences import holders, licences  # noqa: E402


def world(fonts: int = 90, scripts: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Made-up relations (F, F) among fonts and the scripts that they have (F, S)."""
    random = np.random.default_rng(seed)
    related = random.random((fonts, fonts)) < 0.02
    related |= related.T | np.eye(fonts, dtype=bool)
    has = random.random((fonts, scripts)) < 0.7
    return related, has


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_related_fonts_share_a_split(seed: int) -> None:
    related, has = world(seed=seed)
    split = splits.split_fonts(related, has)
    first, second = np.nonzero(related)
    both = (split[first] != splits.DROPPED) & (split[second] != splits.DROPPED)
    assert (split[first] == split[second])[both].all()


def test_every_script_has_fonts_in_every_split() -> None:
    related, has = world()
    split = splits.split_fonts(related, has)
    table = splits.fonts_per_split(has, split)
    assert table.shape == (4, 4)
    assert (table >= 2).all()
    assert not splits.missing(table, list("abcd"), set("abcd"))
    assert table[0].sum() > table[1:].sum(0).max()


def test_a_script_without_fonts_is_named() -> None:
    table = np.array([[5, 5], [1, 0], [2, 2], [2, 2]])
    assert splits.missing(table, ["thai", "lao"], {"thai", "lao"}) == ["lao has no validation font"]
    assert splits.missing(table, ["thai", "lao"], {"thai"}) == []


def test_near_copies_are_alike() -> None:
    masters = np.random.default_rng(0).integers(0, 255, (3, 5, 48, 48)).astype(np.uint8)
    masters[1] = masters[0] ^ 3
    assert splits.alike(masters).tolist() == [[True, True, False], [True, True, False], [False, False, True]]


@pytest.mark.parametrize("effect", sorted(domains.MILD))
def test_effects_give_images_that_a_generator_repeats(effect: str) -> None:
    masters = torch.zeros(6, 48, 48, dtype=torch.uint8)
    masters[:, 10:38, 20:26] = 255

    def draw(seed: int) -> torch.Tensor:
        return domains.images(masters, {effect: domains.MILD[effect]}, torch.Generator().manual_seed(seed))

    assert draw(1).dtype == torch.uint8
    assert draw(1).shape == (6, 32, 32)
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_rows_of_the_class_table_are_disjoint() -> None:
    rows = [index for script in alphabets.ALPHABETS for index in range(alphabets.CLASSES)[alphabets.rows(script)]]
    assert rows == list(range(alphabets.CLASSES))


def test_suites_grow_and_know_their_effects() -> None:
    assert [len(names) for names in tasks.SUITES.values()] == [8, 14, 20]
    assert tasks.SUITES[20][:8] == tasks.SUITES[14][:8] == tasks.SUITES[8]
    for task in tasks.TASKS.values():
        assert set(task.effects) <= set(domains.MILD)
        assert len(set(task.classes)) == len(task.classes)


def test_licences_are_read_from_copyright_files(tmp_path: Path) -> None:
    path = tmp_path / "copyright"
    path.write_text(
        "Format: x\n\nFiles: *\nCopyright: 2001-2003, Ada Byron <ada@example.org>\nLicense: OFL-1.1\n\n"
        "Files: debian/*\nCopyright: 2010 A Packager\nLicense: GPL-2+\n"
    )
    assert licences(path) == ["OFL-1.1"]
    assert holders(path) == ["Ada Byron"]
    path.write_text("Copyright (c) 2007, Some Foundry\n\nunder the SIL Open Font License, Version 1.1\n")
    assert licences(path) == ["OFL-1.x"]
    assert holders(path) == ["Some Foundry"]
    path.write_text("Format: x\n\nFiles: *\nLicense: custom\n Ask the author.\n")
    assert licences(path) == []


@pytest.mark.parametrize("wrong", [["--tasks", "9"], ["--seed", "-1"], ["--stop-after-minutes", "soon"]])
def test_bad_arguments_get_one_line(
    wrong: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "scripts" / "build_zoo.py")
    monkeypatch.setattr(sys, "argv", [script, *wrong])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("build_zoo.py: error: argument " + wrong[0])


def test_shipped_files_keep_their_limits() -> None:
    experts = sorted(path.stem for path in (SUITE / "experts").iterdir())
    card = json.loads((SUITE / "zoo.json").read_text("utf-8"))
    assert card["format"] == 1
    assert experts == sorted(task["name"] for task in card["tasks"]) == sorted(tasks.SUITES[8])
    weights = [SUITE / "base.safetensors", *(SUITE / "experts").iterdir()]
    assert sum(path.stat().st_size for path in weights) <= 32_000_000
    assert (SUITE / "images.safetensors").stat().st_size <= 10_000_000
    text = (SUITE / "ATTRIBUTION.md").read_text("utf-8")
    assert "CC BY-SA 3.0" in text
    assert "fonts-noto-core" in text


def test_shipped_images_and_labels() -> None:
    images, labels = load_file(SUITE / "images.safetensors"), load_file(SUITE / "labels.safetensors")
    card = {task["name"]: len(task["classes"]) for task in json.loads((SUITE / "zoo.json").read_text("utf-8"))["tasks"]}
    sizes = {"validation": 300, "adaptation": 400, "test": 500}
    assert set(images) == {f"{name}/{split}" for name in card for split in sizes}
    assert set(labels) == {f"{name}/{split}" for name in card for split in ("validation", "test")}
    for key, tensor in images.items():
        assert tensor.dtype == torch.uint8
        assert tensor.shape == (sizes[key.split("/")[1]], 32, 32)
    for key, tensor in labels.items():
        assert tensor.dtype == torch.uint8
        assert len(tensor) == len(images[key])
        assert tensor.unique().numel() > 0.8 * card[key.split("/")[0]]
        assert int(tensor.max()) < card[key.split("/")[0]]


def test_no_shipped_image_is_in_two_splits() -> None:
    images = load_file(SUITE / "images.safetensors")
    digests = [hashlib.sha256(image.numpy().tobytes()).digest() for group in images.values() for image in group]
    assert len(set(digests)) == len(digests)


@needs_torch
def test_shipped_weights_fit_the_tower_that_network_json_describes() -> None:
    from open_clip.model import _build_vision_tower  # the function behind open_clip.create_model
    from zoo.network import encoder

    network = json.loads((SUITE / "network.json").read_text("utf-8"))
    tower = _build_vision_tower(network["embed_dim"], network["vision_cfg"])
    for path in (SUITE / "base.safetensors", *sorted((SUITE / "experts").iterdir())):
        weights = load_file(path)
        assert {weight.dtype for weight in weights.values()} == {torch.float16}
        tower.load_state_dict(weights, strict=True)
    ours = encoder()
    ours.load_state_dict(tower.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tower.eval()(images), ours.eval()(images))


@needs_torch
def test_shipped_experts_know_their_tasks() -> None:
    from zoo.network import accuracy, encoder

    heads, images, labels = (load_file(SUITE / f"{name}.safetensors") for name in ("heads", "images", "labels"))
    with safe_open(SUITE / "heads.safetensors", "pt") as file:
        assert float(file.metadata()["logit_scale"]) == 16.0
    network = encoder()
    for task in json.loads((SUITE / "zoo.json").read_text("utf-8"))["tasks"]:
        name, head = task["name"], heads[task["name"]]
        assert head.dtype == torch.float32
        assert head.shape == (len(task["classes"]), 128)
        torch.testing.assert_close(head.norm(dim=1), torch.ones(len(head)))
        network.load_state_dict(load_file(SUITE / "experts" / f"{name}.safetensors"))
        key = f"{name}/test"
        assert accuracy(network, head, images[key][::3], labels[key][::3]) > 0.85
