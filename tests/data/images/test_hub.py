"""HubImages: data sets of Hugging Face from real folders, decoded as files are, and one line for what is wrong."""

import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from lit_merge import HubImages, MergedModel, MergeError, MergeWarning
from lit_merge.data.datasets_tables import open_tables
from lit_merge.data.images.geometry import Geometry
from lit_merge.networks import CosineHeads


def refused(action: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(MergeError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(vision_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What save_to_disk writes of the splits train, validation and test."""
    place = tmp_path_factory.mktemp("hub") / "birds"
    parts = {split: vision_files.table("birds", split) for split in ("train", "validation", "test")}
    datasets.DatasetDict(parts).save_to_disk(place)
    return place


def images(path: Path, **options: Any) -> HubImages:
    return HubImages(**{"paths": {"birds": str(path)}, "image_size": 16, "batch_size": 4} | options)


def test_a_folder_of_save_to_disk(folder: Path, vision_files: Any, capfd: pytest.CaptureFixture[str]) -> None:
    data = images(folder)
    assert data.tasks == ("birds",)
    assert data.protocol == "inductive (adapted on the training images)"
    assert data.class_names("birds") == ["a b", "c", "d"]
    for split, size in (("test", 7), ("validation", 5), ("train", 20)):
        source, labels = data.labelled(split)["birds"]
        drawn, expected = vision_files.draw("birds", split)
        assert len(source) == size
        assert labels is not None
        assert labels.tolist() == expected
        for i in range(size):
            assert torch.equal(source.read([i])[0], Geometry().square(Image.fromarray(drawn[i]), 16))
        assert source.lengths() == [len(source.content(i)) for i in range(size)]
    assert len(list(data.train_dataloader())) == 5
    data.check_classes("test", lambda task: 3)
    refused(lambda: data.check_classes("test", lambda task: 4), "3 classes, its head 4")
    assert capfd.readouterr().err == ""


def test_parquet_arrow_and_folders_of_splits(
    folder: Path, vision_files: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train, test = (vision_files.table("birds", split) for split in ("train", "test"))
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    train.to_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet")
    test.to_parquet(tmp_path / "parquet" / "data" / "test-00000-of-00001.parquet")
    train.save_to_disk(tmp_path / "split" / "train")
    test.save_to_disk(tmp_path / "split" / "test")
    capfd.readouterr()
    whole = images(folder).labelled("test")["birds"][0].read(range(7))
    for kind in ("parquet", "split"):
        data = images(tmp_path / kind)
        assert torch.equal(data.labelled("test")["birds"][0].read(range(7)), whole)
        # No validation split: two of twenty are set aside.
        assert [len(data.labelled(split)["birds"][0]) for split in ("train", "validation")] == [18, 2]
    assert capfd.readouterr().err == ""
    single = images(tmp_path / "split" / "train")
    assert not single.has_test
    refused(lambda: single.labelled("test"), "no test split, only train")


def test_columns_and_splits_of_other_names(vision_files: Any, tmp_path: Path) -> None:
    table = vision_files.table("birds", "test").rename_columns({"image": "photo", "label": "species"})
    datasets.DatasetDict({"training": table, "held_out": table}).save_to_disk(tmp_path / "birds")
    refused(
        lambda: images(tmp_path / "birds", splits={"train": "training"}).unlabelled(),
        str(tmp_path / "birds"), "no column 'image'", "photo, species", "with image",
    )  # fmt: skip
    asked: dict[str, Any] = {"image": "photo", "splits": {"train": "training", "test": "held_out"}}
    refused(lambda: images(tmp_path / "birds", **asked).unlabelled(), "no column 'label'", "photo, species")
    refused(lambda: images(tmp_path / "birds", **asked | {"label": "photo"}).unlabelled(), "column photo holds")
    asked |= {"label": "species"}
    refused(lambda: images(tmp_path / "birds", **asked | {"image": "species"}).unlabelled(), "holds int64", "images")
    data = images(tmp_path / "birds", **asked, on_leak="refuse")
    assert len(data.labelled("test")["birds"][0]) == 7
    # The two splits are the same images: 1 of them is set aside for validation, none of 7 at a tenth.
    refused(data.train_dataloader, "7 of the 7 test images of task birds", "row 0")
    refused(lambda: images(tmp_path / "birds", splits={"test": "tset"}), "no split 'tset'", "training, held_out")


def test_labels_that_are_none(tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for labels, said in (([0, -1], "row 1 has no class"), (["a", "b"], "class_encode_column"), ([0.0, 1.0], "float64")):
        table = datasets.Dataset.from_dict({"image": [picture, picture], "label": labels})
        place = tmp_path / str(labels)
        datasets.DatasetDict({"train": table}).save_to_disk(place)
        refused(images(place).unlabelled, str(place), said)


def test_images_of_every_kind_are_decoded_as_files_are(tmp_path: Path) -> None:
    """Turned by EXIF, of other inks, in files beside the table, and as plain bytes."""
    upright = Image.fromarray(np.tile(np.arange(0, 240, 8, dtype=np.uint8)[:, None, None], (1, 20, 3)))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = io.BytesIO()
    upright.rotate(180).save(turned, "PNG", exif=exif)
    inks = io.BytesIO()
    upright.convert("CMYK").save(inks, "TIFF")
    upright.save(tmp_path / "a.png")
    stored = [turned.getvalue(), inks.getvalue(), (tmp_path / "a.png").read_bytes()]
    table = datasets.Dataset.from_dict({"image": stored, "label": [0, 1, 2]})
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "bytes")
    found = images(tmp_path / "bytes").open("birds", "train").pictures
    for i in range(3):
        assert np.abs(np.asarray(found.picture(i), int) - np.asarray(upright, int)).max() <= 1
    paths = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png")], "label": [0]})
    paths = paths.cast_column("image", datasets.Image())
    source = images_of(paths, tmp_path / "paths")
    assert source.picture(0).tobytes() == upright.tobytes()
    assert source.lengths() == [len(stored[2])]
    assert source.content(0) == stored[2]


def images_of(table: Any, place: Path) -> Any:
    # Saved, files would be embedded: tables of the Hub's loaders point at files.
    from lit_merge.data.images.hub import Tables

    tables = Tables(str(place), {"train": ("train",)}, ("image",), ("label",), 16)
    tables.tables = {"train": table}
    return tables.read("train").pictures


def test_bad_images(folder: Path, vision_files: Any, tmp_path: Path) -> None:
    table = vision_files.table("birds", "train").cast_column("image", datasets.Image(decode=False))
    rows = table.to_dict()
    rows["image"][2]["bytes"] = rows["image"][2]["bytes"][:50]
    rows["image"][4] = None
    broken = datasets.Dataset.from_dict(rows, table.features)
    datasets.DatasetDict({"train": broken}).save_to_disk(tmp_path / "birds")
    source = images(tmp_path / "birds").open("birds", "train").pictures
    refused(lambda: source.read([2]), str(tmp_path / "birds"), "row 2", "cannot be read as an image")
    refused(lambda: source.read([4]), "row 4 has no image in column image")
    with pytest.warns(MergeWarning, match="2 of 20 images of task birds"):
        assert len(images(tmp_path / "birds", on_bad_image="skip").unlabelled()["birds"]) == 16


def test_a_fit(
    folder: Path, vision_files: Any, make_model: Callable[..., MergedModel], make_trainer: Callable[..., Any]
) -> None:
    names = [f"kind {i}" for i in range(5)]
    paths = {}
    for task in ("alpha", "beta", "gamma"):
        parts = {split: vision_files.table(task, split, names) for split in ("train", "test")}
        paths[task] = str(folder.parent / task)
        datasets.DatasetDict(parts).save_to_disk(paths[task])
    data = HubImages(paths, image_size=16, batch_size=4, num_workers=1)
    model = make_model()
    make_trainer(max_steps=2).fit(model, datamodule=data)
    assert not torch.equal(model.coefficients(), make_model().coefficients())


def test_folders_that_are_none(tmp_path: Path, folder: Path) -> None:
    refused(lambda: images(tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such folder", "hf://org/name")
    refused(lambda: images(tmp_path), str(tmp_path), "holds no data set")
    refused(lambda: HubImages({}), "no task")
    shutil.copytree(folder, tmp_path / "birds")
    (tmp_path / "birds" / "train" / "state.json").write_text("{")
    refused(lambda: images(tmp_path / "birds"), str(tmp_path / "birds"), "cannot be read as a data set")


def test_names_of_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    refused(lambda: open_tables("hf://nobody/nothing"), "hf://nobody/nothing", "cannot be loaded")
    refused(lambda: open_tables("hf://nothing"), "hf://org/name")
    import httpx2
    from huggingface_hub import HfApi

    def no_route(*args: Any, **kwargs: Any) -> None:
        raise httpx2.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "dataset_info", no_route)
    said = ("hf://nobody/nothing", "Hub cannot be reached", "Name or service not known", "HF_HUB_OFFLINE=1")
    refused(lambda: open_tables("hf://nobody/nothing"), *said)
    assert time.monotonic() - start < 5


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(lambda: images(folder), "pip install 'lit_merge[hf]'")


def test_every_split_has_classes_in_an_order_of_its_own(vision_files: Any, tmp_path: Path) -> None:
    orders = {"train": ["c", "a_b", "d"], "validation": ["d", "c", "a_b"], "test": ["a_b", "c", "d"]}
    parts = {split: vision_files.table("birds", split, names) for split, names in orders.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "birds")
    data = images(tmp_path / "birds", online=True)
    heads = CosineHeads({"birds": torch.eye(3, 8)})
    heads.name_rows({"birds": ["D", "a b", "c"]}, "here")
    for split, names in orders.items():
        rows = data.label_rows("answers" if split == "train" else split, heads.rows_of)["birds"]
        assert rows.tolist() == [["d", "a_b", "c"].index(name) for name in names]
    assert torch.equal(data.label_rows("adaptation", heads.rows_of)["birds"], torch.tensor([2, 1, 0]))
