"""The verb `zoo` on the shipped suite."""

from pathlib import Path

import pytest

from lit_merge import Experts
from lit_merge.cli.main import main


def test_lists_the_shipped_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    said = capsys.readouterr().out
    for task in ("mnist", "signs", "latin", "greek", "hiragana", "hangul", "thai", "georgian"):
        assert task in said


def test_copies_files_that_merge(tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    assert main(["zoo", "8", "--output", str(copy)]) == 0
    experts = Experts({path.stem: path for path in sorted((copy / "experts").iterdir())}, copy / "base.safetensors")
    assert len(experts.tasks) == 8
    assert main(["zoo", "8", "--output", str(copy)]) == 2
    assert main(["zoo", "8", "--output", str(copy), "--overwrite"]) == 0


@pytest.mark.parametrize(("arguments", "said"), [(["99"], "zoo:99: there is no such suite"), (["--foo"], "--foo")])
def test_mistakes(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_size_of_what_is_shipped() -> None:
    """The limits that the repository keeps: 32 MB of weights, 10 MB of images."""
    folder = Path(__file__).parents[2] / "lit_merge" / "zoo" / "suite8"
    weights = [*(folder / "experts").iterdir(), folder / "base.safetensors"]
    assert sum(path.stat().st_size for path in weights) <= 32e6
    assert (folder / "images.safetensors").stat().st_size <= 10e6
    assert "licen" in (folder / "ATTRIBUTION.md").read_text(encoding="utf-8").lower()
