"""The verb `convert`: any format in, safetensors out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lit_merge import MergeError, convert
from lit_merge.checkpoints import open_checkpoint
from lit_merge.checkpoints.conversion import parse_size
from lit_merge.cli.main import main


@pytest.fixture
def model(tmp_path: Path) -> nn.Module:
    """A module with tied weights, saved whole as model.pt."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.GELU())
    model[2].weight = model[0].weight
    torch.save(model, tmp_path / "model.pt")
    return model


def test_a_whole_module(model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model.safetensors"
    assert main(["convert", str(tmp_path / "model.pt"), "--output", str(output)]) == 0
    said = capsys.readouterr()
    assert said.out == f"9 weights of {tmp_path / 'model.pt'} written to {output}\n"
    assert said.err == ""
    found = load_file(output)
    assert set(found) == set(model.state_dict())  # tied weights under both names
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    assert open_checkpoint(output).metadata["activation"] == "gelu"  # which no weight shows


def test_dtypes_and_shards(model: nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    options = ["--dtype", "bfloat16", "--max_shard_size", "0.05KB"]
    assert main(["convert", str(tmp_path / "model.pt"), "--output", str(folder), *options]) == 0
    assert len(list(folder.glob("*.safetensors"))) > 1
    held = convert(folder, tmp_path / "back.safetensors")
    assert held.dtypes["0.weight"] == torch.bfloat16
    assert held.dtypes["1.num_batches_tracked"] == torch.int64
    found = load_file(tmp_path / "back.safetensors")
    assert torch.equal(found["0.weight"], model[0].weight.bfloat16())
    convert({"w": torch.ones(2)}, tmp_path / "back.safetensors", overwrite=True)
    assert load_file(tmp_path / "back.safetensors")["w"].tolist() == [1, 1]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["convert", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lit_merge: error: ")
    assert said.err.count("\n") == 1
    return said.err


def test_mistakes(model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = str(tmp_path / "model.pt"), str(tmp_path / "out.safetensors")
    assert "nowhere.pt: no such file" in refused(capsys, "nowhere.pt", "--output", output)
    assert "--max_shard_size for a folder" in refused(capsys, source, "--output", str(tmp_path / "out.pt"))
    assert "required: --output" in refused(capsys, source)
    assert "--colour" in refused(capsys, source, "--output", output, "--colour", "red")
    assert "float12" in refused(capsys, source, "--output", output, "--dtype", "float12")
    assert "expected a size such as 5GB" in refused(capsys, source, "--output", output, "--max_shard_size", "much")
    line = refused(capsys, source, "--output", output, "--max_shard_size", "1GB")
    assert "out.safetensors is one file, and max_shard_size is of a folder" in line
    with pytest.raises(MergeError, match=r"out\.safetensors is one file"):
        convert(source, output, max_shard_bytes=10**9)
    torch.save({"w": torch.tensor([1e9, 1.0])}, tmp_path / "large.pt")
    line = refused(capsys, str(tmp_path / "large.pt"), "--output", output, "--dtype", "float16")
    assert "large.pt: w has values that torch.float16 cannot hold: take bfloat16" in line
    Path(output).write_text("mine")
    assert "exists: pass --overwrite" in refused(capsys, source, "--output", output)
    assert "was not written by `lit-merge convert`" in refused(capsys, source, "--output", output, "--overwrite")
    assert Path(output).read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "large.pt", "out.safetensors"}


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("1.5 KB", 1500), ("1000", 1000), ("2G", 2 * 10**9), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "5XB", "1e9"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(MergeError, match="expected a size such as 5GB or 500MB"):
        parse_size(text)
