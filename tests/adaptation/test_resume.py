"""A fit that is killed goes on by the same command, to the same bits."""

import csv
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lit_merge import (
    CART,
    CollapseGuard,
    ImageFolders,
    MergedModel,
    MergeError,
    RankSchedule,
    ResumePoint,
    Stage,
    TaskBank,
)
from lit_merge.adaptation.rank_masks import AdaRank
from lit_merge.adaptation.run import run_fit
from lit_merge.adaptation.trainer import Trainer
from lit_merge.adaptation.unfinished_fit import UnfinishedFit
from lit_merge.objectives import Entropy, Objective

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]
# Two passes and a half over the largest task.
STAGES = (Stage("tied", 7, 0.05), Stage("layer", 16, 0.01))


class Die(Exception):
    """Stands for a kill in tests within one process: nothing of the fit may run after it."""


class DieAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            raise Die


class Drawing(Objective):
    """Draws, as dropout does. (Not from Python's generator: the type checks of the tests draw from that one.)"""

    def __call__(self, logits: torch.Tensor, expert: torch.Tensor | None = None) -> torch.Tensor:
        kept = torch.rand(logits.shape[0]) > 0.3
        factor = 1 + 0.1 * float(np.random.rand())  # noqa: NPY002
        return Entropy()(logits * kept[:, None] * factor)


def killed_and_resumed(
    stops: tuple[int, ...], make: Callable[[], MergedModel], trainer: Callable[..., Trainer], data: Any, run: Path
) -> MergedModel:
    for stop in stops:
        with pytest.raises(Die):
            run_fit(trainer(callbacks=[*callbacks(), DieAt(stop)]), make(), data(), run)
        assert not run.exists()
    model = make()
    run_fit(trainer(callbacks=callbacks()), model, data(), run)
    return model


def callbacks() -> list[Callback]:
    """The guard would stop this fit, whose objective is noise."""
    return [ResumePoint(every_steps=2), CollapseGuard(every_n_steps=0)]


def test_random_objectives_end_at_the_same_bits(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    """Whatever is drawn before the fit by the second process, in mid-pass and at its end (9 steps)."""
    models = []
    for name, places in (("whole", ()), ("early", (3,)), ("twice", (9, 20))):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        data = lambda: ImageFolders(tiny.adapt_folders, tiny.test_folders, image_size=16, batch_size=4)  # noqa: E731
        trainer = lambda **options: make_trainer(max_steps=23, **options)  # noqa: E731
        make = lambda: make_model(stages=STAGES, objective=Drawing())  # noqa: E731
        models.append(killed_and_resumed(places, make, trainer, data, tmp_path / name))
        assert torch.equal(models[0].coefficients(), models[-1].coefficients())
        for file in ("coefficients.csv", "metrics.json", "log/metrics.csv"):
            assert (tmp_path / name / file).read_text() == (tmp_path / "whole" / file).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["early", "twice", "whole"]


def write_config(tiny: Any, path: Path) -> Path:
    content = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "callbacks": [
                {"class_path": "RankSchedule", "init_args": {"ratios": {0: 0.25, 4: 0.5}, "shape": "linear"}},
                {"class_path": "ResumePoint", "init_args": {"every_steps": 1}},
            ],
        },
        "model": {
            "experts": tiny.experts,
            "network": {
                "class_path": "OpenClipImageEncoder",
                "init_args": {"config": tiny.network, "heads": tiny.heads},
            },
            "method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5, "scaling": 1.0}},
            "ranks": {"rank_ratio": 0.3, "lr": 0.05},
            "stages": [{"granularity": "tied", "steps": 4, "lr": 0.05}, {"steps": 8, "lr": 0.01}],
        },
        "data": {"class_path": "Suite", "init_args": {"path": tiny.suite, "batch_size": 4}},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_killed_at_random_moments_the_same_command_ends_at_the_same_bits(forks: Any, tiny: Any, tmp_path: Path) -> None:
    config = write_config(tiny, tmp_path / "config.yaml")
    command = ["fit", "--config", str(config), "--run"]
    forks.run("--version")  # waits until everything is imported
    begun = time.monotonic()
    assert forks.run(*command, str(tmp_path / "whole")) == [0], forks.said.read_text()
    lasted = time.monotonic() - begun
    moments = random.Random(0)
    # Killed once, killed twice; and again on a machine so busy that no kill has met a fit.
    for attempt in range(8):
        run = tmp_path / f"run{attempt}"
        for _ in range(1 + attempt % 2):
            if not run.exists():
                forks.run(*command, str(run), kill_after=moments.uniform(0.3, 0.95) * lasted)
        if not run.exists():
            assert forks.run(*command, str(run)) == [0], forks.said.read_text()
        if list(tmp_path.glob(".*")):
            # Killed between the run's last rename and the end: the next command on it clears up.
            assert forks.run(*command, str(run)) == [2]
        for file in ("coefficients.csv", "bank/bank.safetensors", "metrics.json"):
            assert (run / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        # What is only logged is summed in an order that depends on where tensors lie.
        np.testing.assert_allclose(logged(run), logged(tmp_path / "whole"), rtol=1e-5, atol=1e-6)
        assert not list(tmp_path.glob(".*"))
        if attempt and "going on at step" in forks.said.read_text():
            break
    else:
        pytest.fail("no kill met a fit")


def test_what_callbacks_write_at_the_end_belongs_to_the_fit(forks: Any, tiny: Any, tmp_path: Path) -> None:
    """Killed when the last checkpoint is not in its place yet, and when the export and the coefficients' log are."""
    config = yaml.safe_load(write_config(tiny, tmp_path / "config.yaml").read_text())
    config["trainer"]["callbacks"] += [
        {"class_path": "CompressionExport", "init_args": {"path": "small", "rank_ratio": 0.25}},
        {"class_path": "CoefficientLog", "init_args": {"every_n_steps": 1, "folder": "log", "figures": False}},
        {"class_path": "CollapseGuard", "init_args": {"every_n_steps": 1, "images": 4}},
    ]
    config["trainer"]["logger"] = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}
    del config["model"]["ranks"]
    config["model"]["stages"] = [{"steps": 2, "lr": 0.01}]
    config["trainer"]["callbacks"][0]["init_args"]["ratios"] = {0: 0.25}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    moments = ["rename step.ckpt.waiting to", "rename log to log"]
    command = ["fit", "--config", str(tmp_path / "config.yaml"), "--run", "run"]
    assert forks.kill_and_repeat(*command, moments=moments, folder=tmp_path / "work") == []
    names = {path.name for path in (tmp_path / "work").iterdir()}
    assert names == {"run", "small", "log", "logs"}


def logged(run: Path) -> np.ndarray:
    """The training log as numbers."""
    return np.genfromtxt(run / "log" / "metrics.csv", delimiter=",", skip_header=1)


def stopped(make: Make, make_trainer: MakeTrainer, data: Any, run: Path) -> None:
    """Leaves an unfinished run at step 2."""
    with pytest.raises(Die):
        run_fit(make_trainer(max_steps=4, callbacks=[ResumePoint(every_steps=2), DieAt(3)]), make(), data, run)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, for what the first test leaves to the next ones."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def unfinished(kept: Path, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> Path:
    """The place of a run that is unfinished at step 2; all are copies of one."""
    if not list(kept.iterdir()):
        stopped(make_model, make_trainer, tiny.data(), kept / "run")
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": {"method": CART(rank_ratio=0.25, scaling=1.0)}}, "bank"),
        ({"model": {"method": CART(rank_ratio=0.5, scaling=1.2)}}, "coefficients"),
        ({"model": {"stages": (Stage("layer", 4, 0.1),)}}, "stages"),
        ({"model": {"bounds": (0.0, 2.0)}}, "bounds"),
        ({"model": {"objective": Entropy(per_log_classes=True)}}, "objective"),
        ({"model": {"ranks": AdaRank(0.3)}}, "bank, ranks"),
        ({"data": {"protocol": "transductive"}}, "data, test data"),
        ({"data": {"batch_size": 5}}, "batch size"),
        ({"data": {"seed": 1}}, "data seed"),
        ({"trainer": {"max_steps": 5}}, "max_steps"),
        ({"trainer": {"callbacks": [RankSchedule({0: 0.25})]}}, "callbacks"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_another_fit_does_not_go_on(
    other: dict[str, Any],
    said: str,
    unfinished: Path,
    make_model: Make,
    make_trainer: MakeTrainer,
    tiny: Any,
    tmp_path: Path,
) -> None:
    model = make_model(**other.get("model", {}))
    data, trainer = tiny.data(**other.get("data", {})), make_trainer(**{"max_steps": 4} | other.get("trainer", {}))
    with pytest.raises(MergeError, match="--overwrite") as error:
        run_fit(trainer, model, data, unfinished)
    assert f"{tmp_path / '.run.unfinished'} holds an unfinished fit with other {said}: " in str(error.value)
    assert (tmp_path / ".run.unfinished" / "step.ckpt").exists()


def test_overwrite_starts_another_fit_afresh_and_goes_on_with_the_same(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for batch_size, said in ((4, f"going on at step 2 of 4 ({tmp_path / '.run.unfinished'})\n"), (5, "")):
        shutil.rmtree(run, ignore_errors=True)
        stopped(make_model, make_trainer, tiny.data(), run)
        capsys.readouterr()
        run.mkdir()
        model = make_model()
        run_fit(make_trainer(max_steps=4), model, tiny.data(batch_size=batch_size), run, overwrite=True)
        shown = capsys.readouterr().err
        assert said in shown
        assert bool(said) == ("going on" in shown)
        expected = make_model()
        make_trainer(max_steps=4).fit(expected, datamodule=tiny.data(batch_size=batch_size))
        assert torch.equal(model.coefficients(), expected.coefficients())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_checkpoints_are_due_by_time_by_default(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    for every_seconds, left in ((1e-6, True), (3600.0, False)):
        run = tmp_path / str(left)
        with pytest.raises(Die):
            run_fit(
                make_trainer(max_steps=4, callbacks=[ResumePoint(every_seconds), DieAt(3)]),
                make_model(),
                tiny.data(),
                run,
            )
        checkpoint = tmp_path / f".{left}.unfinished" / "step.ckpt"
        assert checkpoint.exists() == left == checkpoint.parent.exists()
    assert (tmp_path / ".True.unfinished" / "step.ckpt").stat().st_size < 64_000
    assert torch.load(tmp_path / ".True.unfinished" / "step.ckpt", weights_only=True)["global_step"] == 3


class DieAtTest(Callback):
    def on_test_start(self, trainer: Any, module: Any) -> None:
        if getattr(module, "label", "") == "adapted":
            raise Die


def test_a_kill_while_the_run_is_evaluated_costs_nothing_of_the_fit(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point = ResumePoint(every_steps=3)
    with pytest.raises(Die):
        run_fit(make_trainer(max_steps=4, callbacks=[point, DieAtTest()]), make_model(), tiny.data(), tmp_path / "run")
    capsys.readouterr()
    # The log of coefficients is looked at, although the fit does not start again.
    (log,) = (tmp_path / ".run.unfinished" / "coefficients").rglob("coefficients_log.csv")
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b"0,alpha,1", b"0,alpha,2"))
    with pytest.raises(MergeError, match=r"coefficients_log\.csv is damaged"):
        run_fit(make_trainer(max_steps=4), make_model(), tiny.data(), tmp_path / "run")
    log.write_bytes(whole)
    capsys.readouterr()
    model, expected = make_model(), make_model()
    run_fit(make_trainer(max_steps=4), model, tiny.data(), tmp_path / "run")
    assert "going on at step 4 of 4" in capsys.readouterr().err
    make_trainer(max_steps=4).fit(expected, datamodule=tiny.data())
    assert torch.equal(TaskBank.load(tmp_path / "run" / "bank").coefficients, expected.coefficients())
    rows = list(csv.DictReader((tmp_path / "run" / "log" / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]


def test_two_processes_do_not_write_one_run(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    with (
        UnfinishedFit(tmp_path / "run", {"some": "plan"}),
        pytest.raises(MergeError, match=r"another process is at work on .*run: wait"),
    ):
        run_fit(make_trainer(max_steps=1), make_model(), tiny.data(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plan.json", "scores.json", "step.ckpt"])
def test_damaged_state(
    name: str, unfinished: Path, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    (tmp_path / ".run.unfinished" / name).write_text("no such thing")
    with pytest.raises(MergeError, match=f"{name} is damaged: remove .*unfinished to start afresh"):
        run_fit(make_trainer(max_steps=4), make_model(), tiny.data(), tmp_path / "run")
    (tmp_path / ".run.unfinished" / "plan.json").unlink()
    with pytest.raises(MergeError, match="has no plan"):
        run_fit(make_trainer(max_steps=4), make_model(), tiny.data(), tmp_path / "run")


def test_a_digit_in_the_log_of_coefficients(
    unfinished: Path, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    (log,) = (tmp_path / ".run.unfinished" / "coefficients").rglob("coefficients_log.csv")
    whole = log.read_bytes()
    for damaged in (whole.replace(b"0,alpha,1", b"0,alpha,2"), whole[:-9], b""):
        assert damaged != whole
        log.write_bytes(damaged)
        with pytest.raises(MergeError, match=r"coefficients_log\.csv is damaged: remove .*unfinished to start afresh"):
            run_fit(make_trainer(max_steps=4), make_model(), tiny.data(), tmp_path / "run")
    # What was logged after the checkpoint is logged again.
    log.write_bytes(whole + b"3,alpha,9\nhalf of a li")
    run_fit(make_trainer(max_steps=4), make_model(), tiny.data(), tmp_path / "run")
    run_fit(make_trainer(max_steps=4), make_model(), tiny.data(), tmp_path / "undisturbed")
    found, wanted = (tmp_path / name / "coefficients" / log.name for name in ("run", "undisturbed"))
    assert found.read_bytes() == wanted.read_bytes()


def test_resume_points_are_for_runs(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    with pytest.raises(MergeError, match="ModelCheckpoint"):
        make_trainer(max_steps=1, callbacks=[ResumePoint()]).fit(make_model(), datamodule=tiny.data())
    with pytest.raises(MergeError, match="above 0"):
        ResumePoint(every_steps=0)


def test_a_checkpoint_of_a_fit_on_other_data_is_refused(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_model(), datamodule=tiny.data())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    suite = tmp_path / "suite"
    shutil.copytree(tiny.suite, suite)
    images = bytearray((suite / "images.safetensors").read_bytes())
    images[-1] ^= 1
    (suite / "images.safetensors").write_bytes(images)
    others = [type(tiny.data())(str(suite), batch_size=4), ImageFolders(tiny.adapt_folders, image_size=16)]
    for data in others:
        with pytest.raises(MergeError, match="other data"):
            make_trainer(max_steps=4).fit(
                make_model(), datamodule=data, ckpt_path=tmp_path / "two.ckpt", weights_only=True
            )
    # Tested it may be on any.
    make_trainer().test(make_model(), datamodule=others[0], ckpt_path=tmp_path / "two.ckpt", weights_only=True)


def test_folders_are_told_apart_by_names_and_sizes(tiny: Any, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(tiny.adapt_folders["alpha"], folder)
    first = ImageFolders({"alpha": str(folder)}).fingerprint
    shutil.move(folder, tmp_path / "moved")
    folder = tmp_path / "moved"
    assert ImageFolders({"alpha": str(folder)}).fingerprint == first
    assert ImageFolders({"alpha": str(folder)}, image_size=16).fingerprint != first
    one = sorted(folder.iterdir())[0]
    one.write_bytes(one.read_bytes() + b" ")
    assert ImageFolders({"alpha": str(folder)}).fingerprint != first
    one.unlink()
    assert ImageFolders({"alpha": str(folder)}).fingerprint != first


def test_the_disk_holds_the_log_before_a_checkpoint_gets_its_name(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: dict[str, bytes] = {}
    named = 0
    fsync, replace = os.fsync, os.replace

    def holding(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        held[path] = b"" if os.path.isdir(path) else Path(path).read_bytes()
        fsync(descriptor)

    def naming(old: Path, new: Path) -> None:
        nonlocal named
        if Path(new).name == "step.ckpt":
            named += 1
            logs = Path(new).parent / "log"
            assert str(logs) in held
            assert {held[str(path)] == path.read_bytes() != b"" for path in logs.iterdir()} == {True}
        replace(old, new)

    monkeypatch.setattr(os, "fsync", holding)
    monkeypatch.setattr(os, "replace", naming)
    trainer = make_trainer(max_steps=4, callbacks=callbacks(), log_every_n_steps=1)
    run_fit(trainer, make_model(), tiny.data(), tmp_path / "run")
    assert named == 2
