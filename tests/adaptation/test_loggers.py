"""Loggers of other libraries, tried for real: each gets the numbers and the heat maps of a fit."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_merge.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore")


def fit(tiny: Any, root: Path, logger: str, **options: Any) -> int:
    config = {
        "model": {
            "experts": dict(tiny.experts),
            "method": "CART",
            "network": {
                "class_path": "OpenClipImageEncoder",
                "init_args": {"config": tiny.network, "heads": tiny.heads},
            },
            "stages": [{"granularity": "layer", "steps": 2, "lr": 0.01}],
        },
        "data": {"class_path": "Suite", "init_args": {"path": tiny.suite, "batch_size": 4}},
        "trainer": {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "limit_test_batches": 1,
            "logger": {"class_path": logger, "init_args": options},
        },
    }
    (root / "fit.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "--config", str(root / "fit.yaml"), "--run", str(root / "run")])


def test_tensorboard(tiny: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert fit(tiny, tmp_path, "TensorBoardLogger", save_dir=str(tmp_path / "boards")) == 0
    (folder,) = {path.parent for path in (tmp_path / "boards").rglob("events.*")}
    events = EventAccumulator(str(folder), {"images": 0, "histograms": 0, "scalars": 0}).Reload()
    assert {f"coefficient/{task}" for task in tiny.tasks} <= set(events.Tags()["scalars"])
    assert [one.step for one in events.Images("coefficients")] == [0, 2]
    assert [one.step for one in events.Histograms("coefficients/beta")] == [0, 2]


def test_weights_and_biases(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    assert fit(tiny, tmp_path, "WandbLogger", save_dir=str(tmp_path), offline=True, project="tried") == 0
    import wandb

    wandb.finish()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    pictures = sorted(folder.rglob("coefficients_*.png"))
    assert len(pictures) == 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    # Names of metrics stand as they are in its records.
    # Another process writes them.
    for _ in range(100):
        records = b"".join(path.read_bytes() for path in folder.glob("run-*.wandb"))
        if b"coefficient/beta" in records:
            break
        time.sleep(0.1)
    assert b"coefficient/beta" in records


def test_mlflow(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlflow", reason="needs pip install mlflow")
    for database in ("sqlalchemy", "alembic"):
        pytest.importorskip(database, reason="needs pip install mlflow, with its database")
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    place = f"sqlite:///{tmp_path}/mlflow.db"
    assert fit(tiny, tmp_path, "MLFlowLogger", tracking_uri=place) == 0
    client = MlflowClient(place)
    (experiment,) = (one for one in client.search_experiments() if one.name == "lightning_logs")
    (run,) = client.search_runs([experiment.experiment_id])
    assert {f"coefficient/{task}" for task in tiny.tasks} <= run.data.metrics.keys()
    names = [one.path for one in client.list_artifacts(run.info.run_id)]
    assert names == ["coefficients_00000.png", "coefficients_00002.png"]
    # A place that MLflow refuses is named in one line.
    capsys.readouterr()
    assert fit(tiny, tmp_path, "MLFlowLogger", tracking_uri="nowhere://else") == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("lit_merge: error: ")
