"""Files that one command writes and another believes carry checksums: whatever is changed in them is seen."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import MergeError
from lit_merge.checkpoints import SafetensorsFile, write_safetensors
from lit_merge.experts.decompositions import Decompositions

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(6.0).view(2, 3) - 7, "ü": torch.tensor([True, False])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_safetensors(tmp_path / "kept.safetensors", WEIGHTS, {"format": "own", "of": "x"})
    return tmp_path / "kept.safetensors"


def header(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, found: dict, values: bytes) -> None:
    text = json.dumps(found).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)


def test_they_are_those_of_the_values(path: Path) -> None:
    sums = json.loads(header(path)[0]["__metadata__"]["lit_merge_checksums"])["tensors"]
    assert sums == {name: f"{zlib.crc32(one.numpy().tobytes()):08x}" for name, one in load_file(path).items()}
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "own", "of": "x"}
    assert all(torch.equal(file.read(name), value) for name, value in WEIGHTS.items())


def test_every_bit_of_the_values(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) - 50, len(content)):
        content[place] ^= 1
        path.write_bytes(content)
        file = SafetensorsFile(path)
        with pytest.raises(MergeError, match=rf"^{path}: (a|b|ü) is not as it was saved: its checksum .* copy the fil"):
            [file.read(name) for name in WEIGHTS]
        content[place] ^= 1


def test_texts_names_and_shapes(path: Path) -> None:
    found, values = header(path)
    texts = found["__metadata__"]
    for other in (
        found | {"__metadata__": texts | {"of": "y"}},
        found | {"__metadata__": texts | {"more": "y"}},
        found | {"__metadata__": texts | {"lit_merge_checksums": "{}"}},
        found | {"__metadata__": texts | {"lit_merge_checksums": "["}},
        found | {"a": found["b"] | {"shape": [3, 2]}, "b": found["a"]},
        {name.replace("ü", "c"): one for name, one in found.items()},
    ):
        write(path, other, values)
        with pytest.raises(MergeError, match=f"{path} is not as it was saved: its header was changed"):
            SafetensorsFile(path)
    write(path, found | {"a": found["b"], "b": found["a"]}, values)
    with pytest.raises(MergeError, match="a is not as it was saved"):
        SafetensorsFile(path).read("a")


def test_files_of_others_have_none(path: Path) -> None:
    save_file({"a": WEIGHTS["a"] + 1}, path, {"of": "x"})
    assert torch.equal(SafetensorsFile(path).read("a"), WEIGHTS["a"] + 1)


def test_decompositions_that_a_bad_disk_has_changed(tmp_path: Path) -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 4, 3)))
    Decompositions(tmp_path).get("a", matrix, 3)
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(MergeError, match=r"a\.safetensors: \w is not as it was saved"):
        Decompositions(tmp_path).get("a", matrix, 3)
