"""Tensors are written as they come, and what is written loads everywhere."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lit_merge import MergeError
from lit_merge.checkpoints import write_stream

WEIGHTS = {
    "a.flag": torch.tensor([True, False, True]),
    "a.weight": torch.randn(5, 3),
    "b.half": torch.randn(7).bfloat16(),
    "b.double": torch.randn(3, dtype=torch.float64),
    "b.scalar": torch.tensor(4),
    "c.empty": torch.empty(0, 3),
    "ü.view": torch.randn(4, 6).T,
}
SHAPES = {name: tuple(value.shape) for name, value in WEIGHTS.items()}
DTYPES = {name: value.dtype for name, value in WEIGHTS.items()}


def equal(found: dict[str, Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in WEIGHTS.items())


def test_one_file_in_any_order(tmp_path: Path) -> None:
    for i, names in enumerate((list(WEIGHTS), list(reversed(WEIGHTS)))):
        path = tmp_path / f"{i}.safetensors"
        write_stream(
            path, ((name, WEIGHTS[name]) for name in names), SHAPES, DTYPES, metadata={"format": "pt", "x": "y"}
        )
        equal(load_file(path))
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt", "x": "y"}
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    (tmp_path / "plain").touch()
    assert (tmp_path / "0.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_shards(tmp_path: Path) -> None:
    write_stream(tmp_path / "model", WEIGHTS.items(), SHAPES, DTYPES, max_shard_bytes=64)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in WEIGHTS.values())
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert [path.name for path in shards] == [f"model-{i:05d}-of-00003.safetensors" for i in range(1, 4)]
    found = {}
    for path in shards:
        one = load_file(path)
        assert sum(value.nbytes for value in one.values()) <= 64 or len(one) == 1
        assert {index["weight_map"][name] for name in one} == {path.name}
        found |= one
    equal(found)


def test_one_shard_is_a_plain_folder(tmp_path: Path) -> None:
    write_stream(tmp_path / "model", WEIGHTS.items(), SHAPES, DTYPES, max_shard_bytes=10**9)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]
    equal(load_file(tmp_path / "model" / "model.safetensors"))


def test_one_tensor_in_memory_at_a_time(tmp_path: Path) -> None:
    shapes = {f"w{i}": (10,) for i in range(4)}
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def read(name: str) -> Tensor:
        nonlocal most
        value = torch.ones(10)
        alive.add(value)
        most = max(most, len(alive))
        return value

    tensors = ((name, read(name)) for name in shapes)
    write_stream(tmp_path / "w.safetensors", tensors, shapes, dict.fromkeys(shapes, torch.float32))
    assert most <= 2  # the one that is written, and the next while it is made
    assert len(load_file(tmp_path / "w.safetensors")) == 4


@pytest.mark.parametrize("limit", [None, 64])
def test_nothing_is_left_of_a_failure(limit: int | None, tmp_path: Path) -> None:
    output = tmp_path / "out"

    def broken() -> Iterator[tuple[str, Tensor]]:
        yield next(iter(WEIGHTS.items()))
        raise MergeError("w is broken")

    with pytest.raises(MergeError, match="w is broken"):
        write_stream(output, broken(), SHAPES, DTYPES, limit)
    with pytest.raises(ValueError, match="did not come"):
        write_stream(output, list(WEIGHTS.items())[1:], SHAPES, DTYPES, limit)
    with pytest.raises(ValueError, match="announced as"):
        write_stream(output, [("a.weight", torch.ones(3))], SHAPES, DTYPES, limit)
    with pytest.raises(MergeError, match=r"w is of dtype torch\.complex64"):
        write_stream(output, [], {"w": (1,)}, {"w": torch.complex64}, limit)
    assert not list(tmp_path.iterdir())
    write_stream(output, WEIGHTS.items(), SHAPES, DTYPES, limit)
    with pytest.raises(MergeError, match="exists"):
        write_stream(output, WEIGHTS.items(), SHAPES, DTYPES, limit)
    write_stream(output, WEIGHTS.items(), SHAPES, DTYPES, limit, overwrite=True)


def test_more_than_the_disk_has_is_refused_before_it_is_written(tmp_path: Path) -> None:
    shapes, dtypes = {"w": (1 << 40, 1 << 20)}, {"w": torch.float32}
    with pytest.raises(MergeError, match=r"w.safetensors would take 4,611,686,018,427,388,\d+ bytes; its disk has"):
        write_stream(tmp_path / "w.safetensors", iter(()), shapes, dtypes)
    assert not list(tmp_path.iterdir())
