"""The front door: help, versions and verbs, without waiting for torch."""

import subprocess
import sys

import pytest

from lit_merge import __version__
from lit_merge.cli.main import VERBS, main


def test_help_explains_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        told = capsys.readouterr().out
        for verb, text in VERBS.items():
            assert f"{verb} " in told
            assert text in told


def test_help_and_mistyped_verbs_do_not_load_torch() -> None:
    program = (
        "import sys\nfrom lit_merge.cli.main import main\n"
        "main(['--help']); main(['fitt']); main(['--version'])\n"
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit_merge {__version__}\n"


def test_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exprot"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "'exprot'" in told.err
    assert "nearest is export" in told.err


def test_help_of_a_verb_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", "--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    for option in ("--output", "--rank_ratio", "--format {bank,merged,task,lora,", "--model.bank"):
        assert option in told
