"""Outputs go where inputs come from: ~ and variables, and names that something else could be made of."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_merge import CoefficientLog, Decompositions, MergeError, Stage, TaskBank, WeightAveraging, merge_files
from lit_merge.adaptation.callbacks import CompressionExport
from lit_merge.adaptation.run import run_fit
from lit_merge.checkpoints.locations import destination, expanded, resolve
from lit_merge.cli.main import main


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with two experts; the process stands in another folder, in which nothing is to appear."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PLACE", str(home / "place"))
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(here)
    for name in "xyz":
        save_file({"w": torch.randn(4, 4)}, home / f"{name}.safetensors")
    yield home
    assert os.listdir(here) == []


def test_what_a_path_stands_for(home: Path) -> None:
    for path, found in {
        "~/a": home / "a",
        "$HOME/a": home / "a",
        "${HOME}/a": home / "a",
        "$PLACE": home / "place",
        "a~b": Path("a~b"),
        "cost$5 [x] #%": Path("cost$5 [x] #%"),
    }.items():
        assert expanded(path) == destination(path) == resolve(path) == found
    for one in (expanded, destination, resolve):
        with pytest.raises(MergeError, match=r"~nobody-here/a: there is no home folder ~nobody-here"):
            one("~nobody-here/a")
        with pytest.raises(MergeError, match=r"\$UNSET/a: the variable \$UNSET is not set"):
            one("$UNSET/a")
    (home / "$UNSET").mkdir()
    assert destination(home / "$UNSET" / "new") == home / "$UNSET" / "new"
    for place in ("zoo:8/x", "hf://org/name"):
        with pytest.raises(MergeError, match="can only be read"):
            destination(place)


def test_every_verb_writes_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = ["--model.experts.a", "~/x.safetensors", "--model.experts.[b]", "$HOME/y.safetensors"]
    merged = [*experts, "--model.base", "~/z.safetensors", "--model.method", "TaskArithmetic"]
    name = "[red]x[/] y é #% :smile: -" + "long" * 40
    for arguments, written in (
        (["merge", *merged, f"--output=~/{name}.safetensors"], f"{name}.safetensors"),
        (["merge", *merged, "--output=~/folder"], "folder/model.safetensors"),
        (["merge", *merged, "--output=$PLACE/m.safetensors"], "place/m.safetensors"),
        (
            [
                "merge",
                *merged,
                "--model.method.rank_ratio",
                "1",
                "--model.method.matrices",
                "all",
                "--output=~/d",
                "--model.decompositions=~/kept",
            ],
            "kept",
        ),
        (["export", *merged, "--output=~/bank"], "bank/bank.json"),
        (
            ["export", "--model.bank=~/bank", "--format", "task", "--task", "[b]", "--output=~/t.safetensors"],
            "t.safetensors",
        ),
        (["convert", "~/x.safetensors", "--output=~/c.safetensors"], "c.safetensors"),
        (["zoo", "--output=~/zoo"], "zoo/zoo.json"),
        (["analyze", *experts, "--matrices", "all", f"--output=~/{name}"], f"{name}/summary.json"),
        (["inspect", "~/bank"], "bank"),
    ):
        capsys.readouterr()
        assert main(arguments) == 0, capsys.readouterr().err
        assert (home / written).exists(), arguments
        said = capsys.readouterr().out
        if arguments[0] in ("merge", "analyze") and name in arguments[-1]:
            assert name in said
    assert "[b]" in said
    for value in ("~nobody-here/x", "$UNSET/x", "zoo:8/x", "~"):
        assert main(["merge", *merged, f"--output={value}"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_python_writes_there(home: Path) -> None:
    merge_files({"a": "~/x.safetensors", "b": "$HOME/y.safetensors"}, "~/m.safetensors", method=WeightAveraging())
    assert (home / "m.safetensors").is_file()
    assert (
        main(["export", "--model.experts.a=~/x.safetensors", "--model.method=WeightAveraging", "--output=~/bank"]) == 0
    )
    bank = TaskBank.load("~/bank")
    bank.save("$PLACE/bank")
    assert TaskBank.load("$PLACE/bank").fingerprint == bank.fingerprint
    assert Decompositions("~/kept").folder.parent == home / "kept"  # type: ignore[union-attr]


def test_a_run_and_its_callbacks(home: Path, tiny: Any, make_model: Any, make_trainer: Any) -> None:
    callbacks = [CoefficientLog(folder="~/[coefficients]", figures=False), CompressionExport("$PLACE/small")]
    trainer = make_trainer(max_steps=1, callbacks=callbacks)
    run_fit(trainer, make_model(stages=[Stage("tied", 1)]), tiny.data(), "~/run [1]")
    assert {path.name for path in home.iterdir()} >= {"run [1]", "[coefficients]", "place"}
    assert (home / "run [1]" / "metrics.json").is_file()
    assert (home / "[coefficients]" / "coefficients_log.csv").is_file()
    assert TaskBank.load("$PLACE/small").tasks == tiny.tasks
