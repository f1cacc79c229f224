"""Safetensors files: distinguished from others by more than their first bytes."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lit_merge import MergeError
from lit_merge.checkpoints import SafetensorsFile


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x4B50], ids=["pickle 2", "pickle 4", "zip"])
def test_headers_whose_length_looks_like_another_format(length: int, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weights = {"w": torch.ones(2, 2)}
    save_file(weights, path, {"note": ""})
    shortest = int.from_bytes(path.read_bytes()[:8], "little")
    save_file(weights, path, {"note": "x" * (length - shortest)})
    assert path.read_bytes()[:2] == length.to_bytes(2, "little")
    assert torch.equal(SafetensorsFile(path).read("w"), weights["w"])


@pytest.mark.parametrize("protocol", [2, 4, "zip"])
def test_pytorch_files_are_named(protocol: int | str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if protocol == "zip":
        torch.save({"w": torch.ones(2)}, path)
    else:
        path.write_bytes(pickle.dumps({"w": [1.0, 2.0], "name": "x" * 50}, protocol=int(protocol)))
    with pytest.raises(MergeError, match="PyTorch pickle"):
        SafetensorsFile(path)


def test_a_file_larger_than_memory(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rows = 4 * memory // 4096
    path = tmp_path / "large.safetensors"
    entry = {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}
    small = {"dtype": "F32", "shape": [2], "data_offsets": [rows * 4096, rows * 4096 + 8]}
    header = json.dumps({"large": entry, "small": small}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            # A hole, of no bytes on the disk.
            file.truncate(8 + len(header) + rows * 4096)
        except OSError:
            pytest.skip("no files of this size here")
        file.seek(0, os.SEEK_END)
        file.write(torch.tensor([1.0, 2.0]).numpy().tobytes())
    assert SafetensorsFile(path).read("small").tolist() == [1.0, 2.0]
    path.unlink()
