"""ImageFolders: what is read from image files, and one line for whatever cannot be."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lit_merge import ImageFolders, MergedModel, MergeError
from lit_merge.data.folders import ImageFiles


def folders(tiny: Any, **options: Any) -> ImageFolders:
    test = None if "adapt" in options else tiny.test_folders
    return ImageFolders(**{"adapt": tiny.adapt_folders, "test": test, "image_size": 16, "batch_size": 4} | options)


def read(path: Path, size: int = 16) -> torch.Tensor:
    return ImageFiles([path], size).read([0])[0]


def gradient(mode: str = "L") -> Image.Image:
    """16 × 16, from black at the left to white at the right."""
    return Image.fromarray(np.tile(np.arange(0, 256, 17, dtype=np.uint8), (16, 1))).convert(mode)


def refused(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(MergeError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_reads_what_the_suite_holds(tiny: Any) -> None:
    files, suite = folders(tiny, eval_batch_size=100), tiny.data(eval_batch_size=100)
    assert files.tasks == suite.tasks
    for task, source in files.unlabelled().items():
        images = suite.unlabelled()[task].read(range(len(source)))
        assert torch.equal(source.read(range(len(source))), images[:, None].expand(-1, 3, -1, -1))
    for ours, theirs in zip(files.test_dataloader(), suite.test_dataloader(), strict=True):
        # Files come sorted by class, then by their number, which is the place in the suite.
        order = torch.argsort(theirs["labels"], stable=True)
        assert ours["task"] == theirs["task"]
        assert torch.equal(ours["labels"], theirs["labels"][order])
        assert torch.equal(ours["images"][:, 0], theirs["images"][order])


def test_unlabelled_folders_suffice_for_a_fit(
    tiny: Any, make_model: Callable[..., MergedModel], make_trainer: Callable[..., Any]
) -> None:
    model = make_model()
    make_trainer(max_steps=3).fit(model, datamodule=folders(tiny, test=None))
    assert not torch.equal(model.coefficients(), make_model().coefficients())


def test_no_test_folder_is_said_when_testing(tiny: Any) -> None:
    refused(folders(tiny, test=None).test_dataloader, "no test images", "--data.test")
    refused(folders(tiny).val_dataloader, "no validation images", "--data.validation")


def test_missing_folder(tiny: Any, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    refused(lambda: folders(tiny, adapt={"alpha": str(nowhere)}), str(nowhere), "alpha", "no such folder")
    (tmp_path / "file").touch()
    refused(lambda: folders(tiny, adapt={"alpha": str(tmp_path / "file")}), str(tmp_path / "file"), "alpha")
    bad_test = folders(tiny, test={"alpha": str(nowhere)})
    refused(bad_test.test_dataloader, str(nowhere), "alpha", "no such folder")


def test_no_task_at_all() -> None:
    refused(lambda: ImageFolders(adapt={}), "no task")


def test_test_folder_of_a_task_that_is_not_adapted(tiny: Any) -> None:
    adapt = {task: folder for task, folder in tiny.adapt_folders.items() if task != "beta"}
    refused(lambda: folders(tiny, adapt=adapt, test=tiny.test_folders), "beta")


def test_folder_without_images(tiny: Any, tmp_path: Path) -> None:
    refused(lambda: folders(tiny, adapt={"alpha": str(tmp_path)}), str(tmp_path), "alpha", "holds no image")
    (tmp_path / "notes.txt").write_text("hello")
    refused(lambda: folders(tiny, adapt={"alpha": str(tmp_path)}), str(tmp_path), "alpha", "holds no image")


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder of a user who may not read everything, as which the test runs where it runs as root."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o777)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    yield place
    if was_root:
        os.seteuid(0)
    for folder in place.iterdir():
        folder.chmod(0o700)
    shutil.rmtree(place)


def test_unreadable_folders(tiny: Any, nobody: Path) -> None:
    gradient().save(nobody / "a.png")
    (nobody / "locked").mkdir(mode=0)
    for folder in (nobody / "locked", nobody):
        asked = {"alpha": str(folder)}
        refused(lambda: folders(tiny, adapt=asked), str(nobody / "locked"), "alpha", "Permission denied")  # noqa: B023


def test_images_beside_class_folders(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "class0").mkdir()
    gradient().save(tmp_path / "class0" / "a.png")
    gradient().save(tmp_path / "b.png")
    refused(folders(tiny, test={"alpha": str(tmp_path)}).test_dataloader, str(tmp_path), "alpha", "subfolder per class")


def test_class_folder_without_images_keeps_its_number(tiny: Any, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    gradient().save(tmp_path / "a" / "1.png")
    gradient().save(tmp_path / "c" / "1.png")
    _, labels = folders(tiny, test={"alpha": str(tmp_path)}).labelled("test")["alpha"]
    assert labels is not None
    assert labels.tolist() == [0, 2]


def test_hidden_files_are_no_images(tiny: Any, tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"what a Mac leaves behind")
    (tmp_path / ".thumbnails").mkdir()
    gradient().save(tmp_path / ".thumbnails" / "a.png")
    assert len(folders(tiny, adapt={"alpha": str(tmp_path)}).unlabelled()["alpha"]) == 1


def test_images_are_found_in_subfolders_and_whatever_their_case(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    gradient().save(tmp_path / "deep" / "deeper" / "a.PNG")
    gradient().save(tmp_path / "b.Jpeg")
    (tmp_path / "c.txt").write_text("no image")
    assert len(folders(tiny, adapt={"alpha": str(tmp_path)}).unlabelled()["alpha"]) == 2


def broken_files(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.png"
    Image.effect_noise((64, 64), 90).save(whole)
    content = whole.read_bytes()
    files = {
        "truncated": content[: len(content) // 2],
        "header only": content[:20],
        "text": b"this is no image",
        "empty": b"",
    }
    paths = {}
    for kind, bytes_ in files.items():
        paths[kind] = folder / f"{kind.replace(' ', '_')}.png"
        paths[kind].write_bytes(bytes_)
    return paths


@pytest.mark.parametrize("kind", ["truncated", "header only", "text", "empty"])
def test_broken_image_is_named_in_one_line(tmp_path: Path, kind: str) -> None:
    path = broken_files(tmp_path)[kind]
    refused(lambda: read(path), str(path), "cannot be read as an image", "mend or remove it")


def test_truncated_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    refused(lambda: read(path), str(path), "truncated")


def test_image_that_vanished(tmp_path: Path) -> None:
    refused(lambda: read(tmp_path / "gone.png"), "gone.png", "No such file")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_image_stops_a_fit_in_one_line(
    tiny: Any,
    tmp_path: Path,
    make_model: Callable[..., MergedModel],
    make_trainer: Callable[..., Any],
    num_workers: int,
) -> None:
    path = tmp_path / "broken.png"
    path.write_text("no image")
    data = folders(tiny, adapt=tiny.adapt_folders | {"beta": str(tmp_path)}, num_workers=num_workers)
    with pytest.raises(MergeError) as caught:
        make_trainer(max_steps=1).fit(make_model(), datamodule=data)
    assert str(caught.value).startswith(f"{path} cannot be read as an image")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("L", "png"), ("P", "png"), ("P", "gif"), ("CMYK", "tif"), ("RGBA", "png")]
)
def test_gray_gradient_reads_the_same_in_every_mode(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    gradient("RGB").convert(mode).save(path)
    image = read(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 16, 16)
    expected = torch.arange(0, 256, 17).expand(3, 16, 16)
    # A palette has the colours of the web, 51 apart.
    assert (image.long() - expected).abs().max() <= (26 if mode == "P" else 1)


def test_black_and_white_image(tmp_path: Path) -> None:
    Image.fromarray(np.tile([0, 255], (16, 8)).astype(np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0, 0].tolist() == [0, 255] * 8


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    deep = np.tile(np.arange(0, 256, 17, dtype=np.uint16) * 257, (16, 1))
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    assert torch.equal(read(tmp_path / f"a.{suffix}").long(), torch.arange(0, 256, 17).expand(3, 16, 16))


def test_colours_keep_their_order(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[:, 3, 3].tolist() == [200, 100, 50]


def test_transparent_palette_reads_without_a_warning(tmp_path: Path) -> None:
    image = gradient("RGB").quantize(16)
    image.save(tmp_path / "a.png", transparency=bytes([0] * 8 + [255] * 8))
    assert (read(tmp_path / "a.png").long() - torch.arange(0, 256, 17).expand(3, 16, 16)).abs().max() <= 8


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    stored = gradient("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90° clockwise to view
    stored.save(tmp_path / "a.png", exif=exif)
    image = read(tmp_path / "a.png")
    # What was dark at the left is dark at the top.
    assert torch.equal(image[0, :, 0].long(), torch.arange(0, 256, 17))
    assert torch.equal(image[0, :, 0], image[0, :, 15])


def test_shorter_side_is_resized_and_the_centre_kept(tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    image = read(tmp_path / "a.png", 16)
    assert image.shape == (3, 16, 16)
    assert (image[:, :, 2:-2] > 240).all()


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("black", "white")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif").max() == 0
