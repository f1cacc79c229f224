"""Configurations of the package by name: from any folder, and never in the place of a file of the user's."""

import os
from pathlib import Path

import pytest

from lit_merge.cli import shipped
from lit_merge.cli.main import main
from lit_merge.cli.shipped import with_shipped
from lit_merge.errors import MergeError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_names_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--config", "quickstart", "-c", "clip-vit-b-32/8", "--config=cart", "--run", "cart"]
    quickstart, clip, cart = (str(CONFIGS / name) for name in ("quickstart.yaml", "clip-vit-b-32/8.yaml", "cart.yaml"))
    assert with_shipped(given) == ["--config", quickstart, "-c", clip, f"--config={cart}", "--run", "cart"]


def test_what_is_the_users_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cart").write_text("run: runs/mine\n")
    for own in ("cart", "cart.yaml", "configs/cart.yaml", "{run: a}", "run: a", "~/cart", ""):
        assert with_shipped(["--config", own]) == ["--config", own]


def test_all_are_shipped_and_a_wheel_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {str(path) for path in shipped.shipped().values()} == {str(path) for path in CONFIGS.rglob("*.yaml")}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("")
    monkeypatch.setattr(shipped, "PLACES", (tmp_path / "configs", CONFIGS))
    assert shipped.shipped() == {"quickstart": tmp_path / "configs" / "quickstart.yaml"}


def test_other_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MergeError, match=r"^quickstat: no such configuration file.*the nearest is quickstart:"):
        with_shipped(["--config", "quickstat"])
    assert main(["fit", "--config", "quickstat"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lit_merge: error: quickstat: no such configuration file")
    assert len(said.splitlines()) == 1


def test_a_verb_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["merge", "--config", "cart", "--dry-run"]) == 0
    assert "8 experts" in capsys.readouterr().out
    assert os.listdir() == []
