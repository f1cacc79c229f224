"""Files that are replaced, written into, or no files at all, while they are used."""

import json
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_merge import MergeError, TaskBank
from lit_merge.bank.files import BANK
from lit_merge.checkpoints import input_file, open_checkpoint
from lit_merge.checkpoints.input_file import InputFile, of_one_moment
from lit_merge.cli.main import main
from lit_merge.data.class_names import read_lines
from lit_merge.report.report import Report


def save_old(weights: dict[str, Any], path: Path) -> None:
    torch.save(weights, path, _use_new_zipfile_serialization=False)


@pytest.fixture(params=[save_file, torch.save, save_old], ids=["safetensors", "zip", "old"])
def save(request: pytest.FixtureRequest) -> Callable[[dict[str, Any], Path], None]:
    return request.param


def weights(a: float, b: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((5,), a), "b": torch.full((5,), b)}


def test_the_file_that_was_opened_is_read_though_another_took_its_name(
    save: Callable[[dict[str, Any], Path], None], tmp_path: Path
) -> None:
    save(weights(1, 2), tmp_path / "w")
    opened = open_checkpoint(tmp_path / "w")
    save({"a": torch.zeros(9), "b": torch.zeros(8), "c": torch.zeros(7)}, tmp_path / "new")
    os.replace(tmp_path / "new", tmp_path / "w")
    assert opened.read("b").tolist() == [2.0] * 5
    (tmp_path / "w").unlink()
    assert opened.read("a").tolist() == [1.0] * 5


@pytest.mark.parametrize("change", ["shorter", "longer", "other values"])
def test_a_file_that_is_written_into_is_refused(
    change: str, save: Callable[[dict[str, Any], Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "w"
    save(weights(1, 2), path)
    opened = open_checkpoint(path)  # at once: the time of the change is that of its writing, as clocks of files go
    with path.open("r+b") as file:
        if change == "shorter":
            file.truncate(100)
        elif change == "longer":
            file.seek(0, os.SEEK_END)
            file.write(b"more")
        else:
            file.seek(-4, os.SEEK_END)
            file.write(b"    ")
    for _ in range(2):
        with pytest.raises(MergeError, match=f"{path}: could not read b: the file was changed") as error:
            opened.read("b")
        assert "\n" not in str(error.value)


def test_of_very_many_files_few_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_file, "_most", lambda: 5)
    for i in range(20):
        (tmp_path / f"{i}").write_bytes(bytes([i] * 3))
    held = len(os.listdir("/dev/fd"))
    files = [InputFile(tmp_path / f"{i}") for i in range(20)]
    assert len(os.listdir("/dev/fd")) - held <= 5
    assert [file.read(1, 2) for file in files] == [bytes([i] * 2) for i in range(20)]
    assert len(os.listdir("/dev/fd")) - held <= 5
    again = pickle.loads(pickle.dumps(files[0]))
    assert again.read() == bytes(3)
    for i in range(20):
        (tmp_path / "new").write_bytes(bytes([i] * 3))
        os.replace(tmp_path / "new", tmp_path / f"{i}")
    with pytest.raises(MergeError, match=f"{tmp_path / '0'} was replaced while it was used"):
        files[0].read()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder.safetensors" / "in").mkdir(parents=True)
    for place, said in (
        (tmp_path / "pipe", "is a pipe or a device"),
        (Path("/dev/zero"), "is a pipe or a device"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "a\0b", "cannot be read"),
    ):
        with pytest.raises(MergeError, match=said):
            open_checkpoint(place)
    with pytest.raises(MergeError, match="is a folder"):
        InputFile(tmp_path / "folder.safetensors")


def opened_as_target(folder: Path) -> object:
    (folder.parent / "bank").mkdir()
    os.mkfifo(folder.parent / "bank" / "bank.json")
    return BANK.check(folder.parent / "bank")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize(
    ("opened", "said"),
    [
        (TaskBank.load, "is no task bank: .*pipe"),
        (opened_as_target, "bank.json is a pipe or a device: move it elsewhere"),
        (lambda pipe: read_lines(pipe, "class names"), "is a pipe or a device, expected class names"),
        (lambda pipe: Report.load(pipe), "is a pipe or a device"),
    ],
)
def test_no_reader_waits_for_a_pipe(opened: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    # Ends the whole test rather than wait for ever.
    signal.alarm(60)
    try:
        with pytest.raises(MergeError, match=said):
            opened(tmp_path / "pipe")
    finally:
        signal.alarm(0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("option", ["--config=pipe", "--config pipe", "--model.network.heads=pipe", "--config=c.yaml"])
def test_options_and_configurations_name_no_pipe(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    network = {"class_path": "OpenClipImageEncoder", "init_args": {"config": "n.json", "heads": "pipe"}}
    Path("c.yaml").write_text(json.dumps({"model": {"network": network}}))
    signal.alarm(60)
    try:
        assert main(["merge", *option.split(), "--output", "o.safetensors"]) == 2
    finally:
        signal.alarm(0)
    assert "pipe is a pipe or a device, expected a file or a folder" in capsys.readouterr().err


def test_a_folder_is_opened_as_it_was_in_one_moment(tmp_path: Path) -> None:
    folder, calls = tmp_path / "bank", 0
    for name in "abc":
        (tmp_path / name).mkdir()
        for part in "12":
            (tmp_path / name / part).write_text(name)
    (tmp_path / "a").rename(folder)

    def both() -> list[str]:
        nonlocal calls
        calls += 1
        first = (folder / "1").read_text()
        if calls < 3:
            folder.rename(tmp_path / f"old{calls}")
            (tmp_path / "bc"[calls - 1]).rename(folder)
        if calls == 2:
            raise MergeError("a file of a folder that is being removed")
        return [first, (folder / "2").read_text()]

    assert of_one_moment(folder, both) == ["c", "c"]
    assert calls == 3
    with pytest.raises(MergeError, match="no such file"):
        of_one_moment(folder, lambda: InputFile(folder / "3"))


def write_header(path: Path, header: dict[str, Any], values: int) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(values))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": [10**18, 0], "data_offsets": [8, 8]}, "impossible shape"),
        ({"shape": [0, 1 << 20, 1 << 20], "data_offsets": [8, 8]}, "impossible shape"),
        ({"shape": [1] * 100 + [2]}, "is none"),
        ({"shape": [True, 2]}, "is none"),
        ({"shape": [-2]}, "is none"),
        ({"shape": [3]}, "does not take as many bytes as its shape"),
        ({"shape": None}, "is none"),
        ({"dtype": "F31"}, "a dtype that safetensors files do not know"),
        ({"dtype": ["F32"]}, "a dtype that safetensors files do not know"),
        ({"data_offsets": [4, 12]}, "overlap|holes"),
        ({"data_offsets": [8, 16, 24]}, "is none"),
        ({"shape": -1}, "is none"),
        ({"shape": 10**19}, "is none"),
    ],
)
def test_headers_that_are_none(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    good = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
    header = {"a": good | {"data_offsets": [0, 8]}, "b": good}
    write_header(path, header, 16)
    assert open_checkpoint(path).read("b").tolist() == [0, 0]
    write_header(path, header, 17)
    with pytest.raises(MergeError, match="1 bytes behind its last value"):
        open_checkpoint(path)
    wrong = good | change
    write_header(path, {"a": header["a"], "b": wrong}, 8 if wrong["data_offsets"] == [8, 8] else 16)
    with pytest.raises(MergeError, match=said) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)
