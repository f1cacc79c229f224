"""Suite: which images are adapted and tested on, and the images that the package ships."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import MergedModel, MergeError, Suite
from lit_merge.data import check_tasks


def pool(data: Suite, task: str) -> torch.Tensor:
    source = data.unlabelled()[task]
    return source.read(range(len(source)))


def test_inductive_adapts_on_other_images_than_it_tests_on(tiny: Any) -> None:
    data = tiny.data()
    files = load_file(tiny.root / "images.safetensors")
    labels = load_file(tiny.root / "labels.safetensors")
    for task in tiny.tasks:
        assert torch.equal(pool(data, task), files[f"{task}/adaptation"])
        for split in ("validation", "test"):
            images, targets = data.labelled(split)[task]
            assert torch.equal(images.read(range(len(images))), files[f"{task}/{split}"])
            assert torch.equal(targets, labels[f"{task}/{split}"])
    assert data.protocol.startswith("inductive")


def test_transductive_adapts_on_the_test_images(tiny: Any) -> None:
    data = tiny.data(protocol="transductive")
    files = load_file(tiny.root / "images.safetensors")
    assert all(torch.equal(pool(data, task), files[f"{task}/test"]) for task in tiny.tasks)
    assert data.protocol.startswith("transductive")


def test_training_stream_yields_images_by_task_and_nothing_else(tiny: Any) -> None:
    for batch in tiny.data(batch_size=5).train_dataloader():
        assert list(batch) == list(tiny.tasks)
        for images in batch.values():
            assert type(images) is torch.Tensor
            assert images.dtype == torch.uint8
            assert images.shape == (5, 16, 16)


@pytest.mark.parametrize("loader", ["val_dataloader", "test_dataloader", "predict_dataloader"])
def test_evaluation_sees_every_image_once_in_order(tiny: Any, loader: str) -> None:
    split = "validation" if loader == "val_dataloader" else "test"
    seen: dict[str, list[int]] = {}
    for batch in getattr(tiny.data(eval_batch_size=4), loader)():
        seen.setdefault(batch["task"], []).extend(batch["indices"].tolist())
    files = load_file(tiny.root / "images.safetensors")
    assert seen == {task: list(range(len(files[f"{task}/{split}"]))) for task in tiny.tasks}


def test_some_tasks_in_the_order_asked_for(tiny: Any) -> None:
    data = tiny.data(tasks=["gamma", "alpha"])
    assert data.tasks == ("gamma", "alpha")
    assert list(data.unlabelled()) == list(data.labelled("test")) == ["gamma", "alpha"]


def test_unknown_task_is_named(tiny: Any) -> None:
    with pytest.raises(MergeError, match="has no task 'delta'; it has alpha, beta, gamma") as caught:
        tiny.data(tasks=["alpha", "delta"])
    assert caught.value.task == "delta"


def test_task_twice_is_refused(tiny: Any) -> None:
    with pytest.raises(MergeError, match="'alpha' twice"):
        tiny.data(tasks=["alpha", "beta", "alpha"])
    with pytest.raises(MergeError, match=r"tasks=\[\] names no task"):
        tiny.data(tasks=[])


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"eval_batch_size": 0}, {"batch_size": -3}])
def test_batch_sizes_below_one_are_refused(tiny: Any, options: dict[str, int]) -> None:
    with pytest.raises(MergeError, match="expected at least 1"):
        tiny.data(**options)


def test_a_batch_that_no_memory_holds_is_refused(tiny: Any) -> None:
    with pytest.raises(MergeError, match="batch_size=1000000000000: expected at most 1,048,576"):
        tiny.data(batch_size=10**12)
    assert len(tiny.data(eval_batch_size=10**12).test_dataloader()) == 1 * len(tiny.tasks)


def test_missing_suite_is_named(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"images\.safetensors: no such file"):
        Suite(str(tmp_path))


def test_missing_split_is_named(tiny: Any, tmp_path: Path) -> None:
    suite = copytree(tiny.root, tmp_path / "suite")
    images = load_file(suite / "images.safetensors")
    del images["beta/adaptation"]
    save_file(images, suite / "images.safetensors")
    data = Suite(str(suite))
    with pytest.raises(MergeError, match="beta/adaptation"):
        data.train_dataloader()
    assert len(data.labelled("test")["beta"][0]) == 17


def test_empty_task_is_named(tiny: Any, tmp_path: Path) -> None:
    suite = copytree(tiny.root, tmp_path / "suite")
    images = load_file(suite / "images.safetensors")
    images["beta/adaptation"] = images["beta/adaptation"][:0].clone()
    save_file(images, suite / "images.safetensors")
    with pytest.raises(MergeError, match="task beta has no input to adapt on"):
        Suite(str(suite)).train_dataloader()


def test_labels_of_other_length_are_refused(tiny: Any, tmp_path: Path) -> None:
    suite = copytree(tiny.root, tmp_path / "suite")
    labels = load_file(suite / "labels.safetensors")
    labels["beta/test"] = labels["beta/test"][:-1].clone()
    save_file(labels, suite / "labels.safetensors")
    with pytest.raises(MergeError, match="beta/test has 17 images and 16 labels"):
        Suite(str(suite)).labelled("test")


@pytest.mark.parametrize(("merged", "named"), [(("alpha", "beta"), "gamma"), (("alpha", "beta", "gamma", "xi"), "xi")])
def test_tasks_of_data_and_merge_must_be_the_same(tiny: Any, merged: tuple[str, ...], named: str) -> None:
    with pytest.raises(MergeError, match=f"task '{named}'") as caught:
        check_tasks(tiny.data(), merged)
    assert caught.value.task == named


def adapted(
    make_model: Callable[..., MergedModel], make_trainer: Callable[..., Any], suite: Path, protocol: str
) -> torch.Tensor:
    model = make_model()
    data = Suite(str(suite), protocol=protocol, batch_size=4)  # type: ignore[arg-type]
    make_trainer(max_steps=7).fit(model, datamodule=data)
    return model.coefficients().detach()


@pytest.mark.parametrize("protocol", ["inductive", "transductive", "online"])
def test_labels_have_no_influence_on_adaptation(
    tiny: Any,
    make_model: Callable[..., MergedModel],
    make_trainer: Callable[..., Any],
    tmp_path: Path,
    protocol: str,
) -> None:
    expected = adapted(make_model, make_trainer, Path(tiny.suite), protocol)
    assert not torch.equal(expected, make_model().coefficients())
    suite = copytree(tiny.root, tmp_path / "suite")
    labels = load_file(suite / "labels.safetensors")
    save_file({name: value.flip(0) + 1 for name, value in labels.items()}, suite / "labels.safetensors")
    assert torch.equal(adapted(make_model, make_trainer, suite, protocol), expected)
    (suite / "labels.safetensors").write_bytes(b"garbage")
    assert torch.equal(adapted(make_model, make_trainer, suite, protocol), expected)
    (suite / "labels.safetensors").unlink()
    assert torch.equal(adapted(make_model, make_trainer, suite, protocol), expected)


def test_online_passes_over_the_test_images_once(tiny: Any) -> None:
    data, files = tiny.data(protocol="online"), load_file(tiny.root / "images.safetensors")
    labels = load_file(tiny.root / "labels.safetensors")
    for task in tiny.tasks:
        images, tested = pool(data, task), files[f"{task}/test"]
        assert not torch.equal(images, tested)
        known = data.answers()[task]
        pairs = {(x.numpy().tobytes(), int(c)) for x, c in zip(images, known.classes, strict=True)}
        assert pairs == {(x.numpy().tobytes(), int(c)) for x, c in zip(tested, labels[f"{task}/test"], strict=True)}
        assert set(known.tasks) == {task}
        assert torch.equal(pool(tiny.data(protocol="online"), task), images)
        assert not torch.equal(pool(tiny.data(protocol="online", seed=1), task), images)
    batches = list(data.train_dataloader())
    assert [len(batch["beta"]) for batch in batches if "beta" in batch] == [4, 4, 4, 4, 1]
    assert data.steps == len(batches) == 7
    assert list(batches[-1]) == ["gamma"]
    assert tiny.data().steps is None
    assert tiny.data().answers() == {}


def test_stream_sorted_by_class_hands_on_images_only(tiny: Any) -> None:
    data = tiny.data(protocol="online", order="label")
    for known in data.answers().values():
        assert known.classes.tolist() == sorted(known.classes.tolist())
    for batch in data.train_dataloader():
        assert all(images.dtype == torch.uint8 and images.shape[1:] == (16, 16) for images in batch.values())
    assert "stream sorted by class" in data.protocol
    for protocol in ("inductive", "transductive"):
        with pytest.raises(MergeError, match="order=label is of an online stream"):
            tiny.data(protocol=protocol, order="label")


def test_tasks_of_unequal_sizes(tiny: Any) -> None:
    data = tiny.data(sizes={"beta": 2}, batch_size=5)
    assert [len(source) for source in data.unlabelled().values()] == [21, 2, 13]
    assert torch.equal(pool(data, "beta"), pool(tiny.data(), "beta")[:2])
    assert all(len(batch["beta"]) == 5 for batch in data.train_dataloader())
    assert data.protocol.endswith("adapted on 2 images of beta")
    assert len(data.labelled("test")["beta"][0]) == 17
    assert [len(source) for source in tiny.data(sizes={"beta": 2}, protocol="online").unlabelled().values()] == [
        23,
        2,
        26,
    ]
    for sizes, said in (
        ({"delta": 1}, "no task 'delta'"),
        ({"beta": 0}, "0 images"),
        ({"beta": 35}, "which has 34 to"),
    ):
        with pytest.raises(MergeError, match=said):
            tiny.data(sizes=sizes)


def test_an_online_stream_is_for_one_process(tiny: Any) -> None:
    data = tiny.data(protocol="online")
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)
    with pytest.raises(MergeError, match="adapted on by one process"):
        data.train_dataloader()


def test_shipped_images_of_all_splits_are_different() -> None:
    suite = Suite("zoo:8")
    assert len(suite.tasks) == 8
    for task in suite.tasks:
        adaptation = pool(suite, task)
        splits = {"adaptation": adaptation}
        for split in ("validation", "test"):
            images, labels = suite.labelled(split)[task]
            assert labels is not None
            splits[split] = images.read(range(len(images)))
            assert labels.dtype == torch.uint8
            assert len(labels) == len(images)
        assert {split: len(images) for split, images in splits.items()} == {
            "adaptation": 400,
            "validation": 300,
            "test": 500,
        }
        assert all(x.dtype == torch.uint8 and x.shape[1:] == (32, 32) for x in splits.values())
        hashes = {split: {image.numpy().tobytes() for image in images} for split, images in splits.items()}
        assert not hashes["adaptation"] & (hashes["test"] | hashes["validation"])
        assert not hashes["test"] & hashes["validation"]
