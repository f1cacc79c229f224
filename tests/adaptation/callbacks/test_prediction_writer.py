"""PredictionWriter: a row per image while images are seen; a file that is whole or not there."""

import csv
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_merge import ImageFolders, MergedModel, MergeError, PredictionWriter
from lit_merge.adaptation.trainer import Trainer
from lit_merge.report.prediction_files import COLUMNS

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def folders(tiny: Any, **options: Any) -> ImageFolders:
    return ImageFolders(tiny.adapt_folders, image_size=16, eval_batch_size=10, **options)


def test_rows_are_what_predict_answers(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    trainer = make_trainer(callbacks=[PredictionWriter(str(path))])
    answered = trainer.predict(make_model(), datamodule=tiny.data())
    expected = [
        (batch["task"], str(int(index)), [str(c) for c in classes.tolist()], p.tolist())
        for batch in answered
        for index, classes, p in zip(batch["indices"], batch["classes"], batch["probabilities"], strict=True)
    ]
    rows = read(path)
    assert len(rows) == len(expected) == 23 + 17 + 26
    for row, (task, index, classes, p) in zip(rows, expected, strict=True):
        assert (row["task"], row["index"], row["file"]) == (task, index, "")
        # Tasks of three and four classes leave cells empty.
        assert [row[f"class_{i}"] for i in range(1, 6)] == classes + [""] * (5 - len(classes))
        said = [row[f"probability_{i}"] for i in range(1, 6)]
        assert [float(v) for v in said if v] == pytest.approx(p, abs=1e-6)
        assert said.count("") == 5 - len(p)


def test_files_and_names_of_classes(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    model = make_model()
    data = folders(tiny, test=tiny.test_folders)
    make_trainer(callbacks=[PredictionWriter(str(path))]).predict(model, datamodule=data, return_predictions=False)
    make_trainer().test(model, datamodule=data, verbose=False)
    rows = read(path)
    for task, folder in tiny.test_folders.items():
        mine = [row for row in rows if row["task"] == task]
        assert [row["file"] for row in mine] == sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*.png"))
        # A name of a class is the name of the folder: as often right as the test counts.
        hits = sum(row["file"].split("/")[0] == row["class_1"] for row in mine)
        assert hits / len(mine) == pytest.approx(model.scores[task].accuracy)


def test_names_of_classes_for_images_without_labels(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    named = {}
    for task, folder in tiny.test_folders.items():
        names = [f"{task} {path.name}" for path in sorted(Path(folder).iterdir())]
        (tmp_path / f"{task}.txt").write_text("\n".join(names) + "\n")
        named[task] = str(tmp_path / f"{task}.txt")
    found = {}
    for name, options in (("named", {"classes": named}), ("numbers", {})):
        path = tmp_path / f"{name}.csv"
        make_trainer(callbacks=[PredictionWriter(str(path))]).predict(make_model(), datamodule=folders(tiny, **options))
        found[name] = [[row["task"], *(row[f"class_{i}"] for i in range(1, 6))] for row in read(path)]
    expected = [
        [task, *((tmp_path / f"{task}.txt").read_text().splitlines()[int(row)] if row else "" for row in rows)]
        for task, *rows in found["numbers"]
    ]
    assert found["named"] == expected


def test_unlabelled_images_only(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    make_trainer(callbacks=[PredictionWriter(str(path))]).predict(make_model(), datamodule=folders(tiny))
    rows = read(path)
    for task, folder in tiny.adapt_folders.items():
        found = [row["file"] for row in rows if row["task"] == task]
        assert found == sorted(file.name for file in Path(folder).iterdir())
    assert {row["class_1"] for row in rows} <= set("01234")


def test_names_that_are_not_the_heads_rows(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / "test" / "one").mkdir(parents=True)
    source = next(Path(tiny.adapt_folders["beta"]).iterdir())
    (tmp_path / "test" / "one" / "a.png").write_bytes(source.read_bytes())
    data = folders(tiny, test={**tiny.test_folders, "beta": str(tmp_path / "test")})
    with pytest.raises(MergeError, match=r"names 1 classes of task beta .* its head has 4"):
        make_trainer(callbacks=[PredictionWriter(str(tmp_path / "p.csv"))]).predict(make_model(), datamodule=data)
    assert [path.name for path in tmp_path.iterdir()] == ["test"]


class Watch(Callback):
    """Follows what `predict_step` answers, and how much of it is alive."""

    def __init__(self) -> None:
        self.answers: list[weakref.ref[Any]] = []
        self.alive: list[int] = []

    def on_predict_batch_end(self, trainer: Any, module: Any, outputs: Any, *arguments: Any) -> None:
        self.answers.append(weakref.ref(outputs["probabilities"]))
        self.alive.append(sum(answer() is not None for answer in self.answers))


def test_nothing_is_kept_in_memory(make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    watch = Watch()
    trainer = make_trainer(callbacks=[watch, PredictionWriter(str(tmp_path / "p.csv"))])
    trainer.predict(make_model(), datamodule=tiny.data(eval_batch_size=3), return_predictions=False)
    assert len(watch.alive) == 8 + 6 + 9
    assert max(watch.alive) <= 2


class Break(Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_predict_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("broken"), MergeError("broken"), OSError("broken")])
def test_a_run_that_fails(
    error: BaseException, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    path = tmp_path / "p.csv"
    old = ",".join(COLUMNS) + "\n"
    path.write_text(old)
    trainer = make_trainer(callbacks=[PredictionWriter(str(path), overwrite=True), Break(error)])
    with pytest.raises(type(error), match="broken"):
        trainer.predict(make_model(), datamodule=tiny.data())
    assert path.read_text() == old
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(MergeError, match="--overwrite"):
        make_trainer(callbacks=[PredictionWriter(str(path))]).predict(make_model(), datamodule=tiny.data())


def test_other_models(make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="not on BoringModel"):
        make_trainer(callbacks=[PredictionWriter(str(tmp_path / "p.csv"))]).predict(
            BoringModel(), datamodule=tiny.data()
        )
