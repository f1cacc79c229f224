"""Classes of data and heads belong together by their names: put right, or refused by name, never by place."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import (
    ImageFolders,
    MergedModel,
    MergeError,
    OnlineScores,
    OpenClipImageEncoder,
    PredictionWriter,
    Probe,
    Stage,
    adapt,
    evaluate,
)
from lit_merge.data.class_names import match, pair

MakeTrainer = Callable[..., Any]


@pytest.mark.parametrize(
    ("names", "rows", "expected"),
    [
        (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
        (["aquarium_fish", "SeaLake", "T-shirt"], ["t shirt", "Aquarium Fish", "sea lake"], [1, 2, 0]),
        (["cat", "Cat", "CAT_fish"], ["Cat", "cat fish", "cat"], [2, 0, 1]),
        (["/a/abbey", "/b/bazaar/indoor"], ["bazaar indoor", "abbey"], [1, 0]),
        (["Cafe\u0301", "tea"], ["tea", "Caf\u00e9"], [1, 0]),
        (["0", "1", "10", "2"], ["0", "1", "2", "10"], [0, 1, 3, 2]),
        (["00007", "00010"], ["10", "7"], [1, 0]),
        (["C++", "C#"], ["C#", "C++"], [1, 0]),
        # Numbers are no names: by place.
        (["cat", "dog"], ["LABEL_0", "LABEL_1"], None),
        (["cat", "dog"], ["1", "0"], None),
        (["0", "1"], ["cat", "dog"], None),
    ],
)
def test_names_are_paired_however_they_are_written(
    names: list[str], rows: list[str], expected: list[int] | None
) -> None:
    assert pair("x", names, rows) == expected


def test_other_classes_are_refused_by_name() -> None:
    with pytest.raises(MergeError, match=r"task x: .*only the data has 'dog', only the head 'cat'.*tab") as error:
        pair("x", ["dog", "owl"], ["owl", "cat"])
    assert error.value.task == "x"
    assert pair("x", ["dog", "owl"], ["owl", "cat"], strict=False) is None
    # Two that are alike but for their writing, and one that could be either.
    with pytest.raises(MergeError, match="only the data has 'A b', 'a_B', only the head 'ab', 'x'"):
        pair("x", ["A b", "a_B"], ["ab", "x"])
    with pytest.raises(MergeError, match="only the data has none, only the head 'c'"):
        pair("x", ["a", "b"], ["b", "a", "c"])
    assert match(["a", "A-"], ["A", "b"]) == {0: 0}


@pytest.fixture
def turned(tiny: Any, tmp_path: Path) -> Callable[..., OpenClipImageEncoder]:
    """The network with the rows of its heads in another order, and names that say in which."""

    def build(called: str = "Class {}") -> OpenClipImageEncoder:
        heads = load_file(tiny.heads)
        names = {task: [called.format(i) for i in reversed(range(len(rows)))] for task, rows in heads.items()}
        path = tmp_path / "turned.safetensors"
        about = {"logit_scale": "16.0", "class_names": json.dumps(names)}
        save_file({task: rows.flip(0).contiguous() for task, rows in heads.items()}, path, about)
        return OpenClipImageEncoder(tiny.network, str(path))

    return build


@pytest.fixture
def images(tiny: Any, tmp_path: Path) -> Callable[..., ImageFolders]:
    """Images in folders whose sorted names are the rows of the heads that are not turned."""

    def build(**options: Any) -> ImageFolders:
        for task, folder in tiny.test_folders.items():
            for path in Path(folder).iterdir():
                shutil.copytree(path, tmp_path / task / path.name.replace("class", "class_"), dirs_exist_ok=True)
        test = {task: str(tmp_path / task) for task in tiny.tasks}
        given = {"adapt": tiny.adapt_folders, "test": test, "validation": test, "image_size": 16, "batch_size": 4}
        return ImageFolders(**given | options)

    return build


def test_scores_do_not_depend_on_the_order_of_rows(
    tiny: Any, images: Any, turned: Any, make_model: Callable[..., MergedModel], make_trainer: MakeTrainer
) -> None:
    data, bank = images(), make_model().bank
    assert len({score.accuracy for score in evaluate(bank, tiny.encoder(), data).values()}) > 1
    for mixed in (False, True):
        if mixed:
            data = images(adapt={"mixed": str(Path(tiny.adapt_folders["alpha"]).parent)})
        expected = evaluate(bank, tiny.encoder(), data)
        found = evaluate(bank, turned(), data)
        assert {task: one.accuracy for task, one in found.items()} == {t: one.accuracy for t, one in expected.items()}
        model = MergedModel(bank, turned())
        for verb in ("validate", "test"):
            getattr(make_trainer(limit_val_batches=1.0), verb)(model, datamodule=data, verbose=False)
            assert {t: one.accuracy for t, one in model.scores.items()} == {
                t: one.accuracy for t, one in expected.items()
            }
    weights = bank.merge(dtype=torch.float32, naming="canonical")
    readings = [Probe.labelled(network, images(), "validation").read(weights) for network in (tiny.encoder(), turned())]
    assert readings[0].accuracy == readings[1].accuracy


def test_online_scores_do_not_depend_on_it_either(
    tiny: Any, images: Any, turned: Any, make_model: Callable[..., MergedModel], make_trainer: MakeTrainer
) -> None:
    bank, found = make_model().bank, []
    for network in (tiny.encoder(), turned()):
        tested = images()._labelled["test"]
        data = images(online=True, adapt=tested)
        scores = OnlineScores()
        model = MergedModel(bank, network, stages=(Stage("layer", 9, 1e-9),))
        make_trainer(max_steps=99, callbacks=[scores]).fit(model, datamodule=data)
        found.append({task: one.accuracy for task, one in scores.scores.items()})
    assert found[0] == found[1]
    assert found[0].keys() == set(tiny.tasks)


def test_predictions_have_the_names_of_the_rows(
    tiny: Any,
    images: Any,
    turned: Any,
    make_model: Callable[..., MergedModel],
    make_trainer: MakeTrainer,
    tmp_path: Path,
) -> None:
    def predicted(network: OpenClipImageEncoder, data: ImageFolders) -> list[str]:
        path = tmp_path / "p.csv"
        make_trainer(callbacks=[PredictionWriter(str(path), overwrite=True)]).predict(
            MergedModel(make_model().bank, network), datamodule=data
        )
        return [row["class_1"] for row in csv.DictReader(path.read_text().splitlines())]

    expected = predicted(tiny.encoder(), images())
    assert predicted(turned(), images()) == expected
    # What only the heads know: numbers of rows, and their names.
    numbers = predicted(tiny.encoder(), images(test=None, validation=None))
    assert predicted(turned(), images(test=None, validation=None)) == [f"Class {number}" for number in numbers]
    mixed = {"mixed": str(Path(tiny.adapt_folders["alpha"]).parent)}
    said = predicted(turned(), images(adapt=mixed, test=None, validation=None))
    assert {name.split("/")[0] for name in said} <= set(tiny.tasks)
    assert all("/Class " in name for name in said)


def test_every_way_in_refuses_other_names(
    images: Any, turned: Any, make_model: Callable[..., MergedModel], make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    bank, network, data = make_model().bank, turned("sort {}"), images()
    stages = [Stage("layer", 1, 0.1)]
    for action in (
        lambda: evaluate(bank, network, data),
        lambda: adapt(bank, network, data, stages=stages, guard=False, progress=False),
        lambda: make_trainer(limit_val_batches=1.0).validate(
            MergedModel(bank, network), datamodule=data, verbose=False
        ),
        lambda: make_trainer().predict(MergedModel(bank, network), datamodule=data),
        lambda: Probe.draw(network, data, 4),
        lambda: Probe.labelled(network, data, "test"),
    ):
        with pytest.raises(MergeError, match=r"task alpha: .*'class_0', 'class_1'.* only the head 'sort 2', 'sort 1'"):
            action()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("cat, dog", "expected JSON"),
        ('{"alpha": "abc"}', "expected JSON"),
        ('{"alpha": ["a"]}', "names 1 classes of task"),
    ],
)
def test_names_in_a_file_of_heads_that_are_none(tiny: Any, tmp_path: Path, said: str, expected: str) -> None:
    save_file(load_file(tiny.heads), tmp_path / "heads.safetensors", {"class_names": said})
    with pytest.raises(MergeError, match=expected):
        OpenClipImageEncoder(tiny.network, str(tmp_path / "heads.safetensors"))
