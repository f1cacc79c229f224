"""The front door: help, versions and verbs, without waiting for torch."""

import os
import subprocess
import sys

import pytest

from lit_merge import __version__
from lit_merge.cli.main import VERBS, main


def test_help_explains_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        said = capsys.readouterr().out
        for verb, text in VERBS.items():
            assert f"{verb} " in said
            assert text in said


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
    said = capsys.readouterr()
    assert said.out == ""
    assert "'exprot'" in said.err
    assert "nearest is export" in said.err


def test_help_of_a_verb_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for option in ("--output", "--rank_ratio", "--format {bank,merged,task,lora,", "--model.bank"):
        assert option in said


def started(redirects: str, stdout: int | None = None, unbuffered: str = "") -> tuple[int, str]:
    """Exit code and standard error of a start from a shell: of its standard streams, Python makes objects once."""
    command = f'"{sys.executable}" -m lit_merge --help {redirects}'
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(["sh", "-c", command], stdout=stdout, stderr=subprocess.PIPE, env=environment, text=True)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("redirects", [">&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(redirects: str) -> None:
    assert started(redirects) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_nobody_reads(unbuffered: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    assert started("", writes, unbuffered) == (1, "")
    os.close(writes)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_on_a_full_disk(unbuffered: str) -> None:
    ended = started(">/dev/full", unbuffered=unbuffered)
    assert ended == (2, "lit_merge: error: standard output: No space left on device\n")
