"""Shards with an index, and the folders of Hugging Face and open_clip."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import Experts, MergeError, MergeWarning
from lit_merge.checkpoints import SafetensorsFile, open_checkpoint, write_stream

WEIGHTS = {f"layer.{i}.weight": torch.full((4, 3), float(i)) for i in range(5)}
SHAPES = {name: tuple(value.shape) for name, value in WEIGHTS.items()}
DTYPES = {name: value.dtype for name, value in WEIGHTS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards with an index."""
    write_stream(tmp_path / "model", WEIGHTS.items(), SHAPES, DTYPES, max_shard_bytes=96)
    assert len(list((tmp_path / "model").iterdir())) == 4
    return tmp_path / "model"


def refused(source: Path, *said: str) -> None:
    with pytest.raises(MergeError) as caught:
        open_checkpoint(source)
    assert "\n" not in str(caught.value)
    for text in said:
        assert text in str(caught.value)


def test_a_folder_or_its_index(folder: Path) -> None:
    for source in (folder, folder / "model.safetensors.index.json"):
        opened = open_checkpoint(source)
        assert opened.shapes == SHAPES
        assert all(torch.equal(opened.read(name), value) for name, value in WEIGHTS.items())
        assert set(opened.files) == set(folder.iterdir())


def test_shards_are_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    start = SafetensorsFile.__init__
    monkeypatch.setattr(SafetensorsFile, "__init__", lambda self, *args: (opened.append(args), start(self, *args))[1])
    checkpoint = open_checkpoint(folder)
    for name in WEIGHTS:
        checkpoint.read(name)
    assert len(opened) == 3


def test_shards_of_torch_save(tmp_path: Path) -> None:
    names = list(WEIGHTS)
    torch.save({name: WEIGHTS[name] for name in names[:2]}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({name: WEIGHTS[name] for name in names[2:]}, tmp_path / "pytorch_model-00002-of-00002.bin")
    weight_map = {name: f"pytorch_model-0000{1 + (i > 1)}-of-00002.bin" for i, name in enumerate(names)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    opened = open_checkpoint(tmp_path)
    assert all(torch.equal(opened.read(name), value) for name, value in WEIGHTS.items())


def test_which_file_of_a_folder(tmp_path: Path, folder: Path) -> None:
    """In transformers' order: one file before shards, safetensors before pickles; then open_clip's."""
    (tmp_path / "one").mkdir()
    for i, name in enumerate(["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "pytorch_model.bin"]):
        weights = {"w": torch.tensor([float(i)])}
        torch.save(weights, tmp_path / "one" / name) if name.endswith("bin") else save_file(
            weights, tmp_path / "one" / name
        )
        assert open_checkpoint(tmp_path / "one").read("w") == i
    save_file({"w": torch.tensor([9.0])}, folder / "model.safetensors")
    assert open_checkpoint(folder).read("w") == 9


def test_what_transformers_writes(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    )
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("whole", "shards"):
        opened = open_checkpoint(tmp_path / name)
        assert all(torch.equal(opened.read(n), v) for n, v in model.state_dict().items() if n in opened.shapes)
        assert "encoder.layer.1.output.dense.weight" in opened.shapes
    converted = tmp_path / "ours"
    opened = open_checkpoint(tmp_path / "whole")
    write_stream(converted, ((n, opened.read(n)) for n in opened.shapes), opened.shapes, opened.dtypes, 2000)
    (tmp_path / "whole" / "config.json").rename(converted / "config.json")
    again = BertModel.from_pretrained(converted)
    assert all(torch.equal(again.state_dict()[n], v) for n, v in model.state_dict().items())


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_broken_shards(folder: Path) -> None:
    shard = folder / "model-00002-of-00003.safetensors"
    content, own = shard.read_bytes(), load_file(shard)
    name = next(iter(own))
    shard.unlink()
    refused(folder, "model.safetensors.index.json names model-00002-of-00003.safetensors, which is missing")
    shard.write_bytes(content[:-8])
    refused(folder, str(shard), "cut short")
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    refused(folder, str(shard), "Git LFS")
    shard.write_bytes(b"")
    refused(folder, str(shard), "empty")
    about = SafetensorsFile(folder / "model-00001-of-00003.safetensors").metadata
    save_file({"other": torch.ones(2)}, shard, about)
    refused(folder, f"says that {name} is in {shard}", "shard of another model")
    save_file(own | {"more": torch.ones(2)}, shard, about)
    refused(folder, f"{shard} holds more", "shard of another model")


def test_a_shard_of_another_width_is_warned_of(folder: Path) -> None:
    shard = folder / "model-00002-of-00003.safetensors"
    save_file({name: torch.ones(8, 3) for name in load_file(shard)}, shard, SafetensorsFile(shard).metadata)
    with pytest.warns(MergeWarning, match="speaks of 240 bytes of weights, its shards hold 336"):
        open_checkpoint(folder)


def test_shards_of_two_merges(folder: Path, tmp_path: Path) -> None:
    """Of equal names, shapes and sizes: only what was written tells them apart."""
    for name, values in (("again", WEIGHTS), ("other", WEIGHTS | {"layer.4.weight": torch.full((4, 3), 9.0)})):
        write_stream(tmp_path / name, reversed(values.items()), SHAPES, DTYPES, max_shard_bytes=96)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        shutil.copyfile(tmp_path / "other" / path.name, path)
        refused(folder, "is of another merge than", str(folder / "model.safetensors.index.json"))
        path.write_bytes(content)
    # A shard that something else has made, and shards of a time before there was a digest.
    shard = folder / "model-00002-of-00003.safetensors"
    save_file(load_file(shard), shard)
    refused(folder, f"{shard} is of another merge")
    for shard in folder.glob("*.safetensors"):
        save_file(load_file(shard), shard, {"format": "pt"})
    change_index(folder, lambda index: index["metadata"].pop("lit_merge_digest"))
    assert open_checkpoint(folder).shapes == SHAPES


def test_a_model_that_is_overwritten_while_it_is_opened(folder: Path, tmp_path: Path) -> None:
    """Read by one process while another overwrites it: all weights are of one of both."""
    writer = os.fork()
    if not writer:
        # In no regular turn: a reader that took as long as two writes would see one of them only.
        draw = random.Random(0)
        while True:
            value = float(draw.choice((10, 11)))
            values = {name: torch.full((4, 3), value) for name in WEIGHTS}
            write_stream(tmp_path / "model", values.items(), SHAPES, DTYPES, max_shard_bytes=96, overwrite=True)
            time.sleep(draw.uniform(0, 0.02))
    seen: list[float] = []
    ends = time.monotonic() + 60
    try:
        while (len(seen) < 50 or not {10.0, 11.0} <= set(seen)) and time.monotonic() < ends:
            try:
                opened = open_checkpoint(folder)
            except MergeError as refused:
                if "is replaced again and again while it is opened" not in str(refused):
                    raise
                continue
            found = {float(opened.read(name)[0, 0]) for name in WEIGHTS}
            assert len(found) == 1 or found == {0.0, 1.0, 2.0, 3.0, 4.0}
            seen += found
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    assert {10.0, 11.0} <= set(seen)


def test_broken_indices(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    change_index(folder, lambda index: index["weight_map"].update({"gone": "model-00001-of-00003.safetensors"}))
    refused(folder, "says that gone is in")
    for place in ("../outside.safetensors", "/outside.safetensors", "..", ""):
        change_index(folder, lambda index, place=place: index["weight_map"].update({"gone": place}))
        refused(folder, "expected a file next to it")
    for text, said in (
        ('{"weight_map": {}}', "does not map"),
        ('{"weight_map": {"a": 1}}', "does not map"),
        ('{"weight_map": [1]}', "no index of shards"),
        ('{"config": 1}', "no index of shards"),
        ("{", "no index of shards"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS"),
    ):
        index.write_text(text)
        refused(folder, str(index), said)
        refused(index, str(index), said)


def test_folders_without_weights(tmp_path: Path) -> None:
    refused(tmp_path, "holds no weights", "model.safetensors", "open_clip_model.safetensors")
    save_file(WEIGHTS, tmp_path / "tower.safetensors")
    refused(tmp_path, "holds no weights", "name a file of it instead: tower.safetensors")


def test_they_are_experts_with_an_identity(folder: Path, tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "b.pt")
    experts = Experts({"a": folder, "b": tmp_path / "b.pt"}, base=folder)
    assert experts.shapes == SHAPES
    before = experts.identity
    assert before is not None
    change_index(folder, lambda index: index.update(note="changed"))
    assert experts.identity == before  # of what was opened
    assert Experts({"a": folder, "b": tmp_path / "b.pt"}, base=folder).identity != before
    assert Experts({"a": folder, "b": WEIGHTS}).identity is None
