"""`--quiet` and `--log json`."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_merge.cli.main import main


def test_a_merge_in_every_manner(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = [part for task, path in tiny.experts.items() for part in (f"--model.experts.{task}", path)]
    merge = [
        "merge",
        *experts,
        "--model.method",
        "CART",
        "--overwrite",
        "--output",
        str(tmp_path / "merged.safetensors"),
    ]
    assert main(merge) == 0
    plain = capsys.readouterr()
    assert plain.out.startswith("Decomposed as matrices: 8 of ")
    assert "merged.safetensors: " in plain.out
    assert main([*merge, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    for option in (["--log", "json"], ["--log=json"]):
        assert main([*merge, *option]) == 0
        said = capsys.readouterr()
        events = {line["event"]: line for line in map(json.loads, said.out.splitlines())}
        assert events.keys() - {"note"} == {"selected", "written"}
        assert len(events["selected"]["matrices"]) == 8
        assert events["written"]["bytes"] == (tmp_path / "merged.safetensors").stat().st_size
        assert said.err == ""


def test_wrong_values(capsys: pytest.CaptureFixture[str]) -> None:
    for option, message in ((["--log", "xml"], "--log xml: expected text or json"), (["--log"], "--log : expected")):
        assert main(["merge", *option]) == 2
        assert message in capsys.readouterr().err
    assert main(["zoo", "--quiet"]) == 2
