"""What is said of an output that is in its place."""

from pathlib import Path
from typing import Any

import pytest

from lit_merge.cli.written_output import say_folder, say_written


def test_a_disk_that_lists_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has taken the output, so that the command is done."""
    (tmp_path / "file").write_text("1234")
    monkeypatch.chdir(tmp_path)
    say_written(".")
    say_folder(".")
    assert capsys.readouterr().out == "Written to .: 4 bytes\nWritten to .: file\n"

    def fails(*_: Any) -> Any:
        raise OSError(5, "Input/output error", ".")

    monkeypatch.setattr(Path, "rglob", fails)
    monkeypatch.setattr(Path, "iterdir", fails)
    say_written(".")
    say_folder(".")
    assert capsys.readouterr().out == "Written to .\nWritten to .\n"
