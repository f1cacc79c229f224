"""VisionTasks: twenty tasks from small real files in every layout, and one line for what is missing."""

import re
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lit_merge import MergeError, MergeWarning, VisionTasks
from lit_merge.data.images.geometry import Geometry
from lit_merge.data.images.splits import share
from lit_merge.data.vision.task_list import SIGNS, SUITES, TASKS, find_task
from lit_merge.networks import CosineHeads

DOCS = Path(__file__).parents[3] / "docs" / "vision_tasks.md"
NAMES = [task.name for task in TASKS]
# Written without loss: what is read is known to the bit.
EXACT = {"SVHN", "GTSRB", "MNIST", "DTD", "CIFAR100", "STL10", "FER2013", "EMNIST", "CIFAR10", "FashionMNIST", "KMNIST"}
EXACT |= {"Cars", "RenderedSST2", "EuroSAT"}
GREY = {"MNIST", "EMNIST", "FashionMNIST", "KMNIST", "FER2013"}
SHAPES = {"SVHN": (32, 32), "CIFAR10": (32, 32), "CIFAR100": (32, 32), "STL10": (96, 96), "FER2013": (48, 48)}
SHAPES |= dict.fromkeys(("MNIST", "EMNIST", "FashionMNIST", "KMNIST"), (28, 28))
OWN_VALIDATION = {"RESISC45", "EuroSAT", "DTD", "Flowers102", "PCAM", "RenderedSST2"}

pytestmark = [
    pytest.mark.usefixtures("any_digest"),
    pytest.mark.filterwarnings("ignore:the data of task .* the literature's:lit_merge.MergeWarning"),
]


def refused(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(MergeError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def installed(task: str) -> bool:
    return task != "PCAM" or find_spec("h5py") is not None


@pytest.mark.parametrize("task", NAMES)
def test_every_task_from_its_own_files(task: str, vision_root: Path, vision_files: Any) -> None:
    if not installed(task):
        pytest.skip("h5py is not installed")
    data = VisionTasks(str(vision_root), [task], image_size=16)
    source, labels = data.labelled("test")[task]
    drawn, expected = vision_files.draw(task, "test", SHAPES.get(task, (40, 30)), task in GREY)
    assert labels is not None
    classes = 2 if task in ("PCAM", "RenderedSST2") else 3
    assert sorted(labels.tolist()) == sorted(label % classes for label in expected)
    images = source.read(range(len(source)))
    assert images.shape == (7, 3, 16, 16)
    assert images.dtype == torch.uint8
    if task in EXACT:
        squares = {
            Geometry().square(Image.fromarray(one).convert("RGB"), 16).numpy().tobytes(): n
            for n, one in enumerate(drawn)
        }
        found = [squares[image.numpy().tobytes()] for image in images]
        assert [expected[n] % classes for n in found] == labels.tolist()
    names = data.class_names(task)
    assert names is not None
    assert all(re.fullmatch(r"[\w .,'()/&?-]+", name) and "_" not in name for name in names)
    counts = [len(data.labelled(split)[task][0]) for split in ("train", "validation")]
    assert counts == ([20, 5] if task in OWN_VALIDATION else [18, 2])


def test_suites_are_those_of_the_literature() -> None:
    assert SUITES == (8, 14, 20)
    assert len(TASKS) == len(set(NAMES)) == 20
    assert NAMES[:8] == ["SUN397", "Cars", "RESISC45", "EuroSAT", "SVHN", "GTSRB", "MNIST", "DTD"]
    assert set(NAMES[8:14]) == {"CIFAR100", "STL10", "Flowers102", "OxfordIIITPet", "PCAM", "FER2013"}
    assert [task.classes for task in TASKS[:8]] == [397, 196, 45, 10, 10, 43, 10, 47]
    assert all(task.names is None or len(task.names) == task.classes for task in TASKS)
    assert len(set(SIGNS)) == 43


def test_the_docs_table_names_what_is_looked_for() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for task in TASKS:
        (row,) = re.findall(rf"^\| {task.name} \|.*$", text, re.MULTILINE)
        assert f"| {task.classes} |" in row
        assert all(layout.looked_for.removesuffix("/train") in row for layout in task.layouts), row
        assert (task.hub or "–") in row


def test_validation_is_what_the_task_arithmetic_code_sets_aside() -> None:
    train, validation = share(60_000)
    assert (len(train), len(validation)) == (55_000, 5_000)
    assert train[0] == 36_044  # which that code asserts
    assert sorted(train + validation) == list(range(60_000))
    assert [len(part) for part in share(20)] == [18, 2]


def test_train_and_validation_share_no_image(vision_root: Path) -> None:
    data = VisionTasks(str(vision_root), ["MNIST", "EuroSAT"], adapt="train", image_size=16)
    for task in data.tasks:
        parts = [data.labelled(split)[task][0] for split in ("train", "validation", "test")]
        contents = [{source.content(i) for i in range(len(source))} for source in parts]
        assert not contents[0] & contents[1]
        assert not contents[0] & contents[2]
        assert len(data.unlabelled()[task]) == len(parts[0])


def test_names_however_they_are_written(vision_root: Path) -> None:
    data = VisionTasks(str(vision_root), ["stanford-cars", "mnist", "oxford_flowers102"], image_size=16)
    assert data.tasks == ("stanford-cars", "mnist", "oxford_flowers102")
    assert data.class_names("stanford-cars") == [
        "AM General Hummer SUV 2000", "Acura RL Sedan 2012", "McLaren MP4-12C Coupe 2012",
    ]  # fmt: skip
    assert find_task("RENDERED-sst2").name == "RenderedSST2"
    tasks = [task for task in NAMES[:14] if installed(task)]
    assert VisionTasks(str(vision_root), tasks).tasks == tuple(tasks)
    assert len(VisionTasks(str(vision_root)).tasks) == 8


@pytest.mark.parametrize("adapt", ["test", "train", "validation"])
@pytest.mark.parametrize("online", [False, True])
def test_what_is_adapted_on(adapt: Any, online: bool, vision_root: Path) -> None:
    tasks = ["MNIST", "DTD"]
    data = VisionTasks(str(vision_root), tasks, adapt=adapt, online=online, image_size=16, batch_size=4)
    expected = "transductive" if adapt == "test" else f"inductive (adapted on the {adapt}"
    assert data.protocol.startswith(expected)
    assert ("each batch predicted before" in data.protocol) == online
    sizes = {"test": [7, 7], "train": [18, 20], "validation": [2, 5]}[adapt]
    assert [len(source) for source in data.unlabelled().values()] == sizes
    batches = list(data.train_dataloader())
    assert len(batches) == -(-max(sizes) // 4)
    assert set(batches[0]) == set(tasks)
    known = data.answers()
    assert set(known) == (set(tasks) if online else set())
    for task, answers in known.items():
        whole, labels = data.labelled(adapt)[task]
        assert labels is not None
        by_image = {whole.content(i): label for i, label in enumerate(labels.tolist())}
        stream = data.unlabelled()[task]
        assert [by_image[stream.content(i)] for i in range(len(stream))] == answers.classes.tolist()


def test_one_stream_of_all_tasks(vision_root: Path) -> None:
    data = VisionTasks(str(vision_root), ["MNIST", "DTD"], mixed=True, online=True, image_size=16, batch_size=5)
    (batch, *_, last) = data.train_dataloader()
    assert batch["mixed"].shape == (5, 3, 16, 16)
    assert last["mixed"].shape == (4, 3, 16, 16)
    assert sorted(data.answers()["mixed"].tasks) == ["DTD"] * 7 + ["MNIST"] * 7


def test_a_hub_copy_in_the_folder_of_the_task(vision_root: Path, vision_files: Any, tmp_path: Path) -> None:
    from datasets import DatasetDict

    parts = {split: vision_files.table("EuroSAT", split) for split in ("train", "test")}
    for name in ("sun397", "stanford_cars"):
        DatasetDict(parts).save_to_disk(tmp_path / name)
    parts["train"].to_parquet(tmp_path / "resisc45" / "train.parquet")
    parts["test"].to_parquet(tmp_path / "resisc45" / "test.parquet")
    data = VisionTasks(str(tmp_path), ["SUN397", "Cars", "resisc45"], image_size=16)
    assert data.class_names("Cars") == ["a b", "c", "d"]
    expected, _ = VisionTasks(str(vision_root), ["EuroSAT"], image_size=16).labelled("test")["EuroSAT"]
    ours = {image.numpy().tobytes() for image in data.labelled("test")["resisc45"][0].read(range(7))}
    assert ours == {image.numpy().tobytes() for image in expected.read(range(7))}
    assert len(data.labelled("validation")["SUN397"][0]) == 2
    moved = VisionTasks("nowhere", ["SUN397"], {"SUN397": str(tmp_path / "stanford_cars")})
    assert len(moved.unlabelled()["SUN397"]) == 7


def test_class_folders_anywhere(vision_root: Path, tmp_path: Path) -> None:
    shutil.copytree(vision_root / "EuroSAT_splits", tmp_path / "kmnist")
    assert len(VisionTasks(str(tmp_path), ["KMNIST"], image_size=16).unlabelled()["KMNIST"]) == 7
    own = VisionTasks("nowhere", ["KMNIST"], {"KMNIST": str(vision_root / "EuroSAT_splits")}, image_size=16)
    assert len(own.unlabelled()["KMNIST"]) == 7


def test_missing_images_say_where_they_were_looked_for(tmp_path: Path) -> None:
    def open_(task: str, **options: Any) -> Callable[[], Any]:
        return lambda: VisionTasks(str(tmp_path), [task], **options)

    refused(open_("DTD"), str(tmp_path), "DTD", "dtd/dtd", "download: true", "torchvision")
    refused(open_("SUN397"), str(tmp_path), "Training_01.txt", "download: true", "hf://tanganke/sun397")
    refused(open_("FER2013"), "fer2013", "docs/vision_tasks.md")
    refused(open_("MNIST", locations={"MNIST": str(tmp_path / "no")}), str(tmp_path / "no"))
    refused(open_("MNIST", locations={"mnist": "x"}), "no task 'mnist'", "MNIST")


def test_unknown_tasks_and_suites(vision_root: Path) -> None:
    refused(lambda: VisionTasks(str(vision_root), ["cifra10"]), "cifra10", "nearest is CIFAR10")
    refused(lambda: VisionTasks(str(vision_root), 9), "8, 14 and 20")
    refused(lambda: VisionTasks(str(vision_root), []), "no task")
    refused(lambda: VisionTasks(str(vision_root), ["Cars", "stanford_cars"]), "names Cars twice")


def test_damaged_files_in_one_line(vision_root: Path, vision_files: Any, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    data = VisionTasks(str(tmp_path), ["CIFAR10"])
    refused(data.unlabelled, "CIFAR10", str(tmp_path), "test split")
    vision_files.cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "test").write_bytes(b"no pickle")
    refused(VisionTasks(str(tmp_path), ["CIFAR100"]).unlabelled, "CIFAR100", "invalid load key")
    vision_files.resisc45(tmp_path)
    (tmp_path / "resisc45" / "resisc45-test.txt").write_text("castle_001.jpg\n")
    refused(VisionTasks(str(tmp_path), ["RESISC45"]).unlabelled, "resisc45-test.txt", "castle/castle_001.jpg", "3 cl")
    vision_files.eurosat(tmp_path)
    vision_files.save(np.zeros((4, 4, 3), np.uint8), tmp_path / "EuroSAT_splits" / "test" / "a.png")
    refused(VisionTasks(str(tmp_path), ["EuroSAT"]).unlabelled, "a.png", "found images next to")


def test_the_other_files_of_fer2013_have_no_labels(vision_files: Any, tmp_path: Path) -> None:
    vision_files.fer2013(tmp_path)
    place = tmp_path / "fer2013"
    lines = [line.split(",") for line in (place / "fer2013.csv").read_text().splitlines()[1:]]
    (place / "train.csv").write_text("emotion,pixels\n" + "".join(f"{a},{b}\n" for a, b, _ in lines[:20]))
    (place / "test.csv").write_text("pixels\n" + "".join(f"{b}\n" for _, b, _ in lines[20:]))
    (place / "fer2013.csv").unlink()
    refused(VisionTasks(str(tmp_path), ["FER2013"]).unlabelled, "test.csv has no labels", "fer2013.csv")


def test_bad_images(vision_files: Any, tmp_path: Path) -> None:
    vision_files.dtd(tmp_path)
    bad = next((tmp_path / "dtd" / "dtd" / "images").rglob("*_test_0001.png"))
    bad.write_bytes(bad.read_bytes()[:40])
    refused(lambda: VisionTasks(str(tmp_path), ["DTD"]).unlabelled()["DTD"].read(range(7)), str(bad), "cannot be read")
    data = VisionTasks(str(tmp_path), ["DTD"], on_bad_image="skip", image_size=16)
    with pytest.warns(MergeWarning, match="1 of 7 images of task DTD"):
        source, labels = data.labelled("test")["DTD"]
    assert labels is not None
    assert source.read(range(6)).shape == (6, 3, 16, 16)
    assert labels.tolist() == [vision_files.draw("DTD", "test")[1][i] for i in (0, 2, 3, 4, 5, 6)]


@pytest.mark.filterwarnings("default::lit_merge.MergeWarning")
def test_class_counts(vision_root: Path, vision_files: Any, tmp_path: Path) -> None:
    data = VisionTasks(str(vision_root), ["DTD"], image_size=16)
    with pytest.warns(MergeWarning, match="task DTD has 3 classes, the literature's DTD has 47"):
        data.check_classes("test", lambda task: 3)
    refused(lambda: data.check_classes("test", lambda task: 47), "task DTD has 3 classes, its head 47")
    vision_files.mnist(tmp_path, "KMNIST")
    labels = tmp_path / "KMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x0b")
    refused(VisionTasks(str(tmp_path), ["KMNIST"]).unlabelled, "KMNIST has a label 11 and 10 classes")


def test_other_images_are_other_data(vision_root: Path, tmp_path: Path) -> None:
    def print_of(root: Path, **options: Any) -> str:
        return VisionTasks(str(root), **{"tasks": ["DTD"], "image_size": 16} | options).fingerprint

    shutil.copytree(vision_root / "dtd", tmp_path / "dtd")
    assert print_of(tmp_path) == print_of(vision_root)
    assert (
        len({print_of(vision_root, **o) for o in ({}, {"adapt": "train"}, {"tasks": ["MNIST"]}, {"image_size": 8})})
        == 4
    )
    next((tmp_path / "dtd").rglob("*_test_0001.png")).write_bytes(b"another file")
    assert print_of(tmp_path) != print_of(vision_root)


def test_classes_that_the_data_only_numbers_may_be_called_otherwise(vision_root: Path) -> None:
    """GTSRB's images have numbers: names of the literature count where the heads' are the same, and are no must."""
    data = VisionTasks(str(vision_root), ["GTSRB"], image_size=16)
    names = data.class_names("GTSRB")
    assert names is not None
    heads = CosineHeads({"GTSRB": torch.eye(len(names), 64)})
    heads.name_rows({"GTSRB": names[::-1]}, "here")
    assert data.label_rows("test", heads.rows_of)["GTSRB"].tolist() == list(reversed(range(len(names))))
    heads.name_rows({"GTSRB": ["a red and white sign", *names[1:]]}, "here")
    assert data.label_rows("test", heads.rows_of) == {}
