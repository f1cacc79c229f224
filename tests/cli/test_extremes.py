"""Numbers, names and files far from what is expected: one line, exit 2, nothing written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_merge import ImageFolders, MergeError, Stage, Suite
from lit_merge.adaptation.stages import check_stages
from lit_merge.cli import merge
from lit_merge.cli.main import main
from lit_merge.merge.processes import check_devices


@pytest.fixture
def refused(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main(list(arguments)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lit_merge: error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run


@pytest.mark.parametrize(
    ("option", "values"),
    {
        "threads": ["0", "-1", str(10**9), str(10**30), "9" * 5000, "x", "nan", ""],
        "seed_everything": ["-1", str(2**32), str(2**64), "nan", "x"],
        "trainer.devices": ["-2", str(10**6)],
        "trainer.num_nodes": ["0", "-1"],
        "trainer.max_steps": ["-5", str(10**30)],
        "trainer.max_epochs": ["-2"],
        "trainer.accumulate_grad_batches": ["0", str(10**12)],
        "trainer.gradient_clip_val": ["-1", "nan"],
        "trainer.log_every_n_steps": ["-1"],
        "trainer.limit_test_batches": ["-1", "1e30", "nan"],
        "trainer.check_val_every_n_epoch": ["0"],
    }.items(),
)
def test_numbers(option: str, values: list[str], refused: Callable[..., str]) -> None:
    for value in values:
        assert option in refused("merge", f"--{option}={value}", "--output", "out.safetensors")


def test_numbers_of_data_and_stages(tiny: Any) -> None:
    for options in ({"num_workers": -1}, {"num_workers": 10**6}):
        with pytest.raises(MergeError, match=r"num_workers=.*: expected a number from 0 to 1024"):
            ImageFolders(tiny.adapt_folders, image_size=16, **options)
    for seed in (-1, 2**64):
        with pytest.raises(MergeError, match=f"seed={seed}: expected a number from 0 to"):
            Suite(tiny.suite, seed=seed)
    for stage in (Stage(steps=10**30), Stage(steps=0), Stage(lr=1e30), Stage(lr=-1.0)):
        with pytest.raises(MergeError, match="stages: expected at least one, each with steps from 1 to"):
            check_stages([stage])
    for devices in (0, -1, 10**6):
        with pytest.raises(MergeError, match=f"devices={devices}: expected"):
            check_devices(devices, "cpu")


def test_what_the_system_refuses(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is met: a folder that is closed to this user, whom no mode keeps out where that is root."""

    def closed(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "experts/caf\udce9.safetensors")

    monkeypatch.setattr(merge, "Configuration", closed)
    line = refused("merge", "--output", "out.safetensors")
    assert "safetensors: Permission denied: check that the path exists and that this user may read and write it" in line


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("name", ["caf\udce9", "a" * 5000])
def test_names_of_files(name: str, refused: Callable[..., str]) -> None:
    method = ("--model.method", "WeightAveraging")
    refused("inspect", name)
    refused("merge", "--config", name)
    refused("merge", "--model.experts.a", name, *method, "--output", "out.safetensors")
    refused("merge", "--model.experts", name, *method, "--output", "out.safetensors")
