"""Files appear whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_merge import MergeError
from lit_merge.checkpoints import check_output, replacing, write_safetensors, write_text


def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), replacing(target, overwrite=True) as beside:  # noqa: PT012
        beside.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with replacing(target, overwrite=True) as beside:
            beside.mkdir()
            (beside / name).touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    with pytest.raises(MergeError, match="is a folder"):
        write_text(tmp_path / "folder", "text", overwrite=True)
    assert (tmp_path / "folder" / "mine").exists()


def test_existing_and_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MergeError, match="--overwrite"):
        check_output(tmp_path / "file")
    with pytest.raises(MergeError, match="is a file"):
        check_output(tmp_path / "file" / "inside")
    check_output(tmp_path / "new" / "deep" / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_messages_name_the_place_and_not_the_workplace(tmp_path: Path) -> None:
    with pytest.raises(MergeError) as error, replacing(tmp_path / "run") as beside:  # noqa: PT012
        beside.mkdir()
        (beside / "there").touch()
        write_text(beside / "there", "")
    assert str(tmp_path / "run" / "there") in str(error.value)


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


WRITE = """
import sys, torch
from lit_merge.checkpoints import write_safetensors
i = 0
while True:
    i += 1
    write_safetensors(sys.argv[1], {str(n): torch.full((2000,), float(i)) for n in range(20)}, overwrite=True)
    if i == 1:
        print("written", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_killed_while_writing_leaves_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "w.safetensors"
    for i in range(4):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-c", WRITE, target], stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.013 * (i + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        values = {float(v.unique().item()) for v in load_file(target).values()}
        assert len(values) == 1
