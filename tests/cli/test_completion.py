"""`--print-completion`: what a real shell completes with the script."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lit_merge.cli.main import VERBS, main


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_every_verb_and_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        program = f"source {script}; COMP_WORDS=(lit-merge {line}); COMP_CWORD={len(words)}; _shtab_lit_merge"
        said = subprocess.run(
            ["bash", "-c", f'{program}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        return said.stdout.split()

    assert set(completed("")) == set(VERBS)
    assert completed("mer") == ["merge"]
    assert set(completed("fit", "--model.me")) == {"--model.method", "--model.method.help"}
    assert {"--dry-run", "--dry_run"} <= set(completed("merge", "--dry"))
    assert set(completed("sweep", "--select", "")) >= {"accuracy", "agreement", "entropy", "self_consistent"}
    assert "completion.bash" in completed("inspect", "compl")
    assert "completion.bash" in completed("fit", "--config", "compl")


def test_other_shells_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["fash"], [], ["bash", "zsh"]):
        assert main(["--print-completion", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "expected one of bash, zsh" in line
