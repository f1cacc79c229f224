"""Leaks: test images that are adapted on are found by content, named, and reported in one line."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lit_merge import ImageFolders, MergeError, MergeWarning, Suite
from lit_merge.cli.main import main
from lit_merge.data.leaks import Leak, copies, find_leaks
from lit_merge.data.streams import ArrangedImages, ImageTensor


def test_every_copy_is_found() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (9, 4, 4), dtype=torch.uint8)
    adapted, tested = ImageTensor(images[:6]), ImageTensor(images[[7, 2, 5, 2, 8]])
    assert copies(adapted, tested) == copies(adapted, tested, pixels=True) == [(2, 1), (5, 2), (2, 3)]
    assert copies(adapted, ImageTensor(images[6:])) == []
    assert copies(adapted, ImageTensor(torch.zeros(2, 5, 5, dtype=torch.uint8))) == []
    turned = ArrangedImages([adapted], [5, 4, 3, 2])
    assert copies(turned, tested) == [(3, 1), (0, 2), (3, 3)]
    joined = ArrangedImages([ImageTensor(images[:1]), adapted])
    assert copies(joined, tested) == [(3, 1), (6, 2), (3, 3)]
    found = find_leaks({"mixed": joined}, {"a": tested, "b": ImageTensor(images[6:])})
    assert found == [Leak("a", 3, 5, "image 1", "image 2")]


def test_the_built_in_suite_has_none() -> None:
    assert Suite("zoo:8").leaks(pixels=True) == []


@pytest.fixture
def leaking(tiny: Any, tmp_path: Path) -> dict[str, Any]:
    """Options of ImageFolders: two test images of beta among its images to adapt on, one in another format."""
    adapt = tmp_path / "adapt"
    shutil.copytree(tiny.adapt_folders["beta"], adapt)
    first, second, *_ = sorted(Path(tiny.test_folders["beta"]).rglob("*.png"))
    shutil.copy(first, adapt / "other name.png")
    Image.open(second).save(adapt / "other format.bmp")
    folders = {"adapt": tiny.adapt_folders | {"beta": str(adapt)}, "test": tiny.test_folders}
    return folders | {"image_size": 16, "batch_size": 4}


def test_by_file_and_by_pixels(leaking: dict[str, Any], tiny: Any) -> None:
    data = ImageFolders(**leaking)
    (leak,) = data.leaks()
    assert (leak.task, leak.count, leak.images) == ("beta", 1, 17)
    assert leak.adapted.endswith("other name.png")
    assert leak.tested.startswith(tiny.test_folders["beta"])
    assert [one.count for one in data.leaks(pixels=True)] == [2]


def test_warn_refuse_or_ignore(leaking: dict[str, Any], tiny: Any) -> None:
    with pytest.warns(MergeWarning, match="1 of the 17 test images of task beta stand among"):
        ImageFolders(**leaking).train_dataloader()
    with pytest.raises(MergeError, match=r"task beta.*other name.png.*on_leak: warn") as caught:
        ImageFolders(**leaking, on_leak="refuse").train_dataloader()
    assert caught.value.task == "beta"
    ImageFolders(**leaking, on_leak="ignore").train_dataloader()
    # The same folder twice is meant.
    ImageFolders(tiny.test_folders, tiny.test_folders, image_size=16, on_leak="refuse").train_dataloader()


def test_the_verb(leaking: dict[str, Any], tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [f"--data.{kind}.{task}={path}" for kind in ("adapt", "test") for task, path in leaking[kind].items()]
    assert main(["leaks", "--data", "ImageFolders", *folders]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "task beta" in line
    assert main(["leaks", "--config", "configs/cart.yaml", "--data.path", tiny.suite]) == 0
    assert "No test image of alpha, beta, gamma is adapted on (contents of files)" in capsys.readouterr().out
    assert main(["leaks", "--config", "configs/cart.yaml", "--data.path", tiny.suite, "--pixels"]) == 0
    assert main(["leaks", "--config", "configs/cart.yaml", "--data.path", tiny.suite, "--data.protocol", "online"]) == 2
    assert "nothing to find: this data is online" in capsys.readouterr().err
    assert main(["leaks", "--data", "ImageFolders", *(one for one in folders if "adapt" in one)]) == 2
    assert "no test images" in capsys.readouterr().err
    assert main(["leaks", "--data", "Siute"]) == 2
    assert "nearest is Suite" in capsys.readouterr().err
