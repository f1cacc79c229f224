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

from lit_merge import (
    CART,
    ImageFolders,
    MergedModel,
    MergeError,
    MergeWarning,
    OnlineScores,
    Prototypes,
    Stage,
    adapt,
    build_bank,
    evaluate,
)
from lit_merge.choose.sample import Probe


def folders(tiny: Any, **options: Any) -> ImageFolders:
    test = None if "adapt" in options else tiny.test_folders
    return ImageFolders(**{"adapt": tiny.adapt_folders, "test": test, "image_size": 16, "batch_size": 4} | options)


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


@pytest.fixture
def with_bad_images(tiny: Any, tmp_path: Path) -> ImageFolders:
    """Beta with three files that are no images among its own, and one among its test images."""
    adapt, test = tmp_path / "adapt", tmp_path / "test"
    shutil.copytree(tiny.adapt_folders["beta"], adapt)
    shutil.copytree(tiny.test_folders["beta"], test)
    (adapt / "000a.png").touch()
    (adapt / "020.png").write_bytes((adapt / "020.png").read_bytes()[:-30])
    (adapt / "zzz.jpg").write_text("no image")
    (test / "class1" / "000a.png").touch()
    return folders(
        tiny,
        adapt=tiny.adapt_folders | {"beta": str(adapt)},
        test=tiny.test_folders | {"beta": str(test)},
        on_bad_image="skip",
    )


def test_bad_images_are_skipped_where_that_was_asked_for(
    tiny: Any, with_bad_images: ImageFolders, make_model: Callable[..., MergedModel], make_trainer: Callable[..., Any]
) -> None:
    data = with_bad_images
    with pytest.warns(MergeWarning) as said:
        batches = list(data.train_dataloader())
    assert len(said) == 1
    assert "3 of 36 images of task beta cannot be read" in str(said[0].message)
    assert all(name in str(said[0].message) for name in ("000a.png", "020.png", "zzz.jpg"))
    whole = folders(tiny).unlabelled()["beta"].read([i for i in range(34) if i != 20])
    assert torch.equal(data.unlabelled()["beta"].read(range(33)), whole)
    # Nothing is decoded twice to be checked, and batches are those of the step's number.
    for first, again in zip(batches, data.train_dataloader(), strict=True):
        assert all(torch.equal(first[task], again[task]) for task in first)
    with pytest.warns(MergeWarning, match="1 of 18 images of task beta"):
        source, labels = data.labelled("test")["beta"]
    expected, classes = folders(tiny).labelled("test")["beta"]
    assert torch.equal(source.read(range(17)), expected.read(range(17)))
    assert labels is not None
    assert torch.equal(labels, classes)
    make_trainer(max_steps=2).fit(make_model(), datamodule=data)


def test_nothing_is_decoded_before_it_is_needed(with_bad_images: ImageFolders, tiny: Any) -> None:
    """Warnings are errors here."""
    assert with_bad_images.tasks == tiny.tasks
    assert "inductive" in with_bad_images.protocol


def test_a_task_of_bad_images_only(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    data = folders(tiny, adapt=tiny.adapt_folders | {"beta": str(tmp_path)}, on_bad_image="skip")
    refused(data.train_dataloader, "none of the 1 images of task beta", str(tmp_path / "a.png"))


def test_the_protocol_says_whether_test_images_were_adapted_on(tiny: Any, tmp_path: Path) -> None:
    assert folders(tiny).protocol == "inductive (adapted on other images than tested on)"
    same = folders(tiny, adapt=tiny.test_folders, test=tiny.test_folders)
    assert same.protocol == "transductive (adapted on the test images, without their labels)"
    adapt = tiny.test_folders | {"alpha": tiny.adapt_folders["alpha"]}
    assert "43 of the 66 test images" in folders(tiny, adapt=adapt, test=tiny.test_folders).protocol
    assert folders(tiny, test=None).protocol == "adapted on the given folders, tested on none"


def test_one_pass_over_folders_is_scored_where_labels_are_known(
    tiny: Any, make_model: Callable[..., MergedModel], make_trainer: Callable[..., Any]
) -> None:
    adapt = tiny.test_folders | {"alpha": tiny.adapt_folders["alpha"]}
    data, scores = folders(tiny, adapt=adapt, test=tiny.test_folders, online=True), OnlineScores()
    assert "each batch predicted before" in data.protocol
    model = make_model(stages=(Stage("layer", 9, 1e-9),))
    make_trainer(max_steps=99, callbacks=[scores]).fit(model, datamodule=data)
    assert {task: len(classes) for task, classes in scores.predictions.items()} == {
        "alpha": 21,
        "beta": 17,
        "gamma": 26,
    }
    make_trainer().test(model, datamodule=data, verbose=False)
    assert {task: score.accuracy for task, score in scores.scores.items()} == {
        task: model.scores[task].accuracy for task in ("beta", "gamma")
    }
    assert folders(tiny, test=None, online=True).answers() == {}


def test_images_are_as_large_as_the_network_takes_them(tiny: Any, make_trainer: Callable[..., Any]) -> None:
    """For every use of data with a network; before one is met, they are as most CLIPs take them."""
    chosen, left = folders(tiny), folders(tiny, image_size=None)
    assert left.test_dataloader().dataset[0]["images"].shape[-2:] == (224, 224)
    assert left.fingerprint != chosen.fingerprint
    bank = build_bank(tiny.experts, method=CART(0.5, 1.0))
    assert evaluate(bank, tiny.encoder(), left) == evaluate(bank, tiny.encoder(), chosen)
    assert left.fingerprint == chosen.fingerprint
    for use in (
        lambda data: adapt(bank, tiny.encoder(), data, stages=[Stage("tied", 2, 0.1)]).coefficients,
        lambda data: Probe.draw(tiny.encoder(), data, 5).inputs,
        lambda data: Probe.labelled(tiny.encoder(), data, "test").inputs,
        lambda data: Prototypes.collect(bank, tiny.encoder(), data, 5).layers,
    ):
        torch.testing.assert_close(use(folders(tiny, image_size=None)), use(folders(tiny)), rtol=0, atol=0)
    refused(lambda: folders(tiny, image_size=0), "image_size=0: expected the side of the images in pixels")
    refused(
        lambda: evaluate(bank, tiny.encoder(), folders(tiny, image_size=24)), "24 × 24", "leave --data.image_size out"
    )


def test_folders_of_classes_go_by_the_names_that_are_given(tiny: Any, tmp_path: Path) -> None:
    """In the order of the file, not of the alphabet, and without a folder for a class that has no images."""
    shutil.copytree(tiny.test_folders["alpha"], tmp_path / "test")
    first, *others = sorted(path.name for path in (tmp_path / "test").iterdir())
    shutil.rmtree(tmp_path / "test" / first)
    (tmp_path / "classes.txt").write_text("\n".join([*reversed(others), first]))
    data = ImageFolders(test={"alpha": str(tmp_path / "test")}, classes={"alpha": str(tmp_path / "classes.txt")})
    source, labels = data.labelled("test")["alpha"]
    assert labels is not None
    names = [*reversed(others), first]
    assert [names[label] for label in labels] == [Path(source.label(i)).parent.name for i in range(len(source))]
    data.check_classes("test", lambda task: len(names))
    refused(lambda: data.check_classes("test", lambda task: 9), f"names {len(names)} classes", "has 9")
    (tmp_path / "classes.txt").write_text("\n".join(others[1:]))
    refused(lambda: data.labelled("test"), str(tmp_path / "test" / others[0]), "names no such class")
    refused(lambda: folders(tiny, classes={"delta": "d.txt"}), "classes: there is no task 'delta'; there are alpha")
