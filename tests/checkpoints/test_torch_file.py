"""What torch.save writes is read as the model's own state dict, one tensor at a time."""

import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from lit_merge import MergeError, MergeWarning
from lit_merge.checkpoints import open_checkpoint
from lit_merge.checkpoints.torch_file import TorchFile


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Identity()])
        self.tied = self.layers[0]
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("passing", torch.ones(5), persistent=False)
        self.register_buffer("none", None)
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.config = {"activation": nn.GELU, "place": Path("x"), "dtype": torch.float16, "size": torch.Size([2])}


def same(path: Path, expected: dict[str, Tensor]) -> None:
    opened = open_checkpoint(path)
    assert list(opened.shapes) == list(expected)
    for name, value in expected.items():
        found = opened.read(name)
        assert found.is_contiguous()
        assert (found.dtype, tuple(found.shape)) == (opened.dtypes[name], opened.shapes[name])
        assert torch.equal(found, value), name
        assert found.dtype == value.dtype
    assert opened.nbytes == sum(value.nbytes for value in expected.values())
    assert opened.files == (path,)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("form", ["state dict", "module", "lightning", "open_clip", "deepspeed"])
def test_every_form(form: str, modern: bool, tmp_path: Path) -> None:
    tower = Tower().half() if form == "state dict" else Tower()
    expected = dict(tower.state_dict())
    assert "passing" not in expected
    optimizer = torch.optim.AdamW(tower.parameters())
    tower.scale.sum()
    saved: Any = {
        "state dict": expected,
        "module": tower,
        "lightning": {
            "epoch": 3,
            "state_dict": expected,
            "optimizer_states": [optimizer.state_dict()],
            "loss": torch.ones(1),
        },
        "open_clip": {
            "epoch": 3,
            "name": "x",
            "state_dict": OrderedDict((f"module.{n}", v) for n, v in expected.items()),
        },
        "deepspeed": {"module": expected, "dp_world_size": 4},
    }[form]
    path = tmp_path / "model.any"
    torch.save(saved, path, _use_new_zipfile_serialization=modern)
    same(path, expected)


def test_views_expanded_and_empty_tensors_and_dtypes(tmp_path: Path) -> None:
    whole = torch.randn(6, 5)
    weights = {
        "rows": whole[2:4],
        "columns": whole[:, 1:3],
        "transposed": whole.T,
        "strided": whole[::2, ::2],
        "expanded": torch.ones(3, 1).expand(3, 4),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "bfloat16": whole.bfloat16(),
        "float64": whole.double(),
        "parameter": nn.Parameter(whole),
        "uint8": torch.arange(4, dtype=torch.uint8),
    }
    for modern in (True, False):
        torch.save(weights, tmp_path / "model.pt", _use_new_zipfile_serialization=modern)
        opened = open_checkpoint(tmp_path / "model.pt")
        for name, value in weights.items():
            assert torch.equal(opened.read(name), value), name
            assert opened.dtypes[name] == value.dtype


class ImageEncoder(nn.Module):
    """As src/modeling.py of the task-arithmetic release, which TALL-masks and others took over."""

    def __init__(self) -> None:
        super().__init__()
        vision = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}
        text = {"context_length": 5, "vocab_size": 9, "width": 16, "heads": 2, "layers": 1}
        self.model = open_clip.model.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text)
        self.train_preprocess = open_clip.image_transform(32, is_train=True)
        self.val_preprocess = open_clip.image_transform(32, is_train=False)
        self.cache_dir = None
        del self.model.transformer


class ClassificationHead(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 3)
        self.normalize = True


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("kind", [ImageEncoder, ClassificationHead])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_whole_modules_of_classes_that_are_not_installed(
    kind: type[nn.Module], modern: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ModuleType("src.modeling")
    setattr(there, kind.__name__, kind)
    model = kind()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "src", ModuleType("src"))
        patch.setitem(sys.modules, "src.modeling", there)
        patch.setattr(kind, "__module__", "src.modeling")
        torch.save(model, tmp_path / "model.pt", _use_new_zipfile_serialization=modern)
    assert b"src.modeling" in (tmp_path / "model.pt").read_bytes()
    same(tmp_path / "model.pt", model.state_dict())
    if kind is ImageEncoder:
        names = open_checkpoint(tmp_path / "model.pt").shapes
        assert "model.visual.conv1.weight" in names
        assert "model.attn_mask" not in names  # a buffer that is not persistent


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_as_openai_ships_clip(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Conv1d(2, 2, 1)))
    torch.jit.script(model).save(str(tmp_path / "ViT-B-32.pt"))
    found, expected = open_checkpoint(tmp_path / "ViT-B-32.pt"), model.state_dict()
    assert set(found.shapes) == set(expected)
    assert all(torch.equal(found.read(name), value) for name, value in expected.items())


def test_reading_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    torch.save({f"w{i}": torch.full((1000,), float(i)) for i in range(50)}, path)
    opened, before = open_checkpoint(path), path.stat()
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((4,), 7.0).numpy().tobytes())
    content[place : place + 4] = torch.tensor([9.0]).numpy().tobytes()
    path.write_bytes(content)  # after it was opened: read from the file only now
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert opened.read("w7")[0] == 9
    assert opened.read("w7")[1] == 7
    opened.read("w8")[0] = -1
    assert opened.read("w8")[0] == 8


def refused(path: Path, *said: str) -> None:
    with pytest.raises(MergeError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    for text in (str(path), *said):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ([torch.ones(1)], ["no weights", "a list"]),
        (torch.ones(2), ["no weights", "a single tensor"]),
        ({"optimizer": {"state": {}}, "epoch": 1}, ["no weights", "optimizer, epoch"]),
        ({}, ["no weights", "an empty dictionary"]),
        (nn.Identity(), ["without a single weight"]),
        ({"w": torch.ones(1), "note": "x"}, ["note is a str", "expected a tensor"]),
        ({"w": torch.ones(1), 3: torch.ones(1)}, ["a weight is called by a int"]),
        ({"w": torch.ones(2, dtype=torch.complex64)}, ["w is of dtype torch.complex64"]),
        ({"v": torch.ones(1), "w": torch.eye(2).to_sparse()}, ["_rebuild_sparse_tensor", "expected a tensor"]),
        ("text", ["no weights", "a str"]),
    ],
)
@pytest.mark.parametrize("modern", [True, False])
def test_files_without_a_model(saved: Any, said: list[str], modern: bool, tmp_path: Path) -> None:
    if isinstance(saved, dict) and "w" in saved and saved["w"].is_sparse and not modern:
        pytest.skip("old files cannot hold it")
    torch.save(saved, tmp_path / "model.pt", _use_new_zipfile_serialization=modern)
    refused(tmp_path / "model.pt", *said)


@pytest.mark.parametrize("modern", [True, False])
def test_averages_beside_raw_weights(modern: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    saved = {"epoch": 3, "state_dict_ema": {"w": torch.full((2,), 2.0)}, "state_dict": {"w": torch.ones(2)}}
    torch.save(saved, path, _use_new_zipfile_serialization=modern)
    with pytest.warns(MergeWarning, match=r"state_dict and state_dict_ema: state_dict is taken; .*#state_dict_ema"):
        assert open_checkpoint(path).read("w").tolist() == [1, 1]
    assert open_checkpoint(f"{path}#state_dict_ema").read("w").tolist() == [2, 2]
    assert open_checkpoint(f"{path}#state_dict").read("w").tolist() == [1, 1]
    refused(Path(f"{path}#optimizer"), "no weights under 'optimizer'", "state_dict_ema")
    # Averages alone are the model.
    torch.save({"ema_model": {"w": torch.full((2,), 3.0)}, "step": 1}, path, _use_new_zipfile_serialization=modern)
    assert open_checkpoint(path).read("w").tolist() == [3, 3]


@pytest.mark.parametrize("modern", [True, False])
def test_files_cut_short_anywhere(modern: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({f"w{i}": torch.randn(30) for i in range(3)}, path, _use_new_zipfile_serialization=modern)
    content = path.read_bytes()
    for size in range(1, len(content), 97):
        path.write_bytes(content[:size])
        refused(path)
    path.write_bytes(content[:-40])
    refused(path, "copy or download it again")


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    refused(path, "Git LFS", "git lfs pull")
    path.write_bytes(pickle.dumps({"w": [1.0]}, protocol=4))
    refused(path, "none that torch.save wrote")
    path.write_bytes(b"")
    refused(path, "empty")
    path.write_bytes(b"GGUF" + b"\0" * 100)
    refused(path, "GGUF")
    path.write_bytes(b"words, only words, and no weights at all")
    refused(path, "not a safetensors file, nor one that torch.save wrote")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.randn(5000)}, path)
    opened = TorchFile(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(MergeError, match=r"model\.pt: could not read w: the file was changed while it was used"):
        opened.read("w")


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "model.pt").write_bytes(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        refused(tmp_path / "model.pt", "cannot be read: Permission denied")
    monkeypatch.setattr(Path, "iterdir", refuse)
    refused(tmp_path, "cannot be read: Permission denied")
