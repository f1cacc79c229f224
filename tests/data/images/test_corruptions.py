"""Corruptions: stronger with severity, the same at every reading, and said in the protocol."""

from typing import Any, get_args

import pytest
import torch

from lit_merge import MergeError
from lit_merge.cli.main import main
from lit_merge.data.images.corruptions import LEVELS, CorruptedImages, Corruption, Kind
from lit_merge.data.streams import ImageTensor

KINDS = get_args(Kind)
NAMES = [str(i) for i in range(6)]


def pictures(channels: int | None = None) -> torch.Tensor:
    """Six pictures of blotches of many sizes, neither black nor white."""
    generator = torch.Generator().manual_seed(0)
    sizes = [torch.rand(6, 1, n, n, generator=generator) for n in (4, 8, 16, 32)]
    blotches = torch.stack([torch.nn.functional.interpolate(one, 32, mode="bilinear")[:, 0] for one in sizes])
    images = (20 + 110 * blotches.mean(0)).to(torch.uint8)
    return images if channels is None else images[:, None].repeat(1, channels, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_severity_does_more(kind: Any) -> None:
    images = pictures()
    distances = [
        (Corruption(kind, severity)(images, NAMES).float() - images.float()).square().mean().item()
        for severity in range(1, 6)
    ]
    assert distances[0] > 0
    assert distances == sorted(set(distances))


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_same_in_every_batch(kind: Any) -> None:
    corruption, images = Corruption(kind), pictures(3)
    source = CorruptedImages(ImageTensor(images), corruption, "alpha/test")
    whole = source.read(range(6))
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    assert torch.equal(source.read([4, 1, 4]), whole[[4, 1, 4]])
    assert torch.equal(images, pictures(3))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "noise"])
def test_grey_images_are_treated_as_coloured_ones(kind: Any) -> None:
    corruption = Corruption(kind)
    grey = corruption(pictures(), NAMES)
    assert torch.equal(corruption(pictures(3), NAMES), grey[:, None].expand(-1, 3, -1, -1))


def test_noise_has_the_deviation_that_it_is_said_to_have() -> None:
    images = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    found = Corruption("noise", 2)(images, [str(i) for i in range(20)]).float()
    assert found.std().item() / 255 == pytest.approx(0.12, rel=0.02)
    assert found.mean().item() == pytest.approx(128, abs=0.5)


def test_noise_differs_by_image_task_and_seed() -> None:
    images = ImageTensor(torch.full((2, 16, 16), 128, dtype=torch.uint8))
    first, second = CorruptedImages(images, Corruption("noise"), "alpha/test").read([0, 1])
    assert not torch.equal(first, second)
    assert not torch.equal(CorruptedImages(images, Corruption("noise"), "beta/test").read([0])[0], first)
    assert not torch.equal(CorruptedImages(images, Corruption("noise", seed=1), "alpha/test").read([0])[0], first)


def test_blur_contrast_brightness_and_pixelate_by_hand() -> None:
    spot = torch.zeros(1, 33, 33, dtype=torch.uint8)
    spot[0, 16, 16] = 255
    blurred = Corruption("blur", 2)(spot, ["a"])[0]
    assert blurred[16, 16] < 255
    assert torch.equal(blurred, blurred.T)
    assert torch.equal(blurred, blurred.flip(0))
    half = torch.tensor([[0, 200]], dtype=torch.uint8).repeat(1, 4, 1)
    assert Corruption("contrast", 1)(half, ["a"])[0, 0].tolist() == [60, 140]
    assert Corruption("brightness", 2)(half, ["a"])[0, 0].tolist() == [51, 251]
    assert Corruption("pixelate", 1)(half, ["a"])[0, 0].tolist() == [100, 100]


def test_one_colour_survives_but_for_noise_and_brightness() -> None:
    images = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    for kind in ("blur", "contrast", "pixelate"):
        assert torch.equal(Corruption(kind, 5)(images, ["a"]), images)


def test_unknown_kind_and_severity() -> None:
    with pytest.raises(MergeError, match="corruption='nose': the nearest is noise; there are noise, blur"):
        Corruption("nose")
    for severity in (0, 6):
        with pytest.raises(MergeError, match=f"severity={severity}: expected 1 to 5"):
            Corruption("noise", severity)
    assert set(LEVELS) == set(KINDS)


@pytest.mark.parametrize("protocol", ["inductive", "transductive"])
def test_a_suite_corrupts_what_it_adapts_and_tests_on(tiny: Any, protocol: Any) -> None:
    clean = tiny.data(protocol=protocol)
    data = tiny.data(protocol=protocol, corruption="noise", severity=4)
    assert data.protocol == f"{clean.protocol}; all images corrupted: noise, severity 4"
    for task in tiny.tasks:
        adapted, tested = data.unlabelled()[task], data.labelled("test")[task][0]
        before = clean.unlabelled()[task].read([2, 0])
        split = "adaptation" if protocol == "inductive" else "test"
        expected = Corruption("noise", 4)(before, [f"{task}/{split}/2", f"{task}/{split}/0"])
        assert torch.equal(adapted.read([2, 0]), expected)
        assert not torch.equal(tested.read([3]), clean.labelled("test")[task][0].read([3]))
        assert torch.equal(adapted.read([3]), tested.read([3])) == (protocol == "transductive")


def test_the_command_line_names_the_nearest_kind(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "configs/quickstart.yaml", "--data.corruption", "nose"]
    assert main(["test", *options]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "data.corruption: expected noise, blur, contrast, brightness or pixelate, got nose; the nearest" in said


def test_a_severity_of_nothing(tiny: Any) -> None:
    with pytest.raises(MergeError, match="severity=2 of no corruption"):
        tiny.data(severity=2)
    with pytest.raises(MergeError, match="severity=0: expected 1 to 5"):
        tiny.data(corruption="noise", severity=0)
    assert tiny.data(corruption="noise").protocol.endswith("noise, severity 3")
