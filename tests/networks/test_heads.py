"""Heads as files: what is read, and one line for what cannot be."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from lit_merge import MergeError
from lit_merge.networks import CosineHeads


def test_scale_of_the_file(tmp_path: Path) -> None:
    rows = F.normalize(torch.randn(4, 6))
    save_file({"a": rows, "b": rows[:2].clone()}, tmp_path / "heads.safetensors", {"logit_scale": "12.5"})
    heads = CosineHeads.load(tmp_path / "heads.safetensors")
    assert (heads.classes("a"), heads.classes("b")) == (4, 2)
    features = torch.randn(3, 6)
    torch.testing.assert_close(heads(features, "b"), 12.5 * F.cosine_similarity(features[:, None], rows[:2], dim=-1))


def test_heads_in_half_precision_answer_in_float32(tmp_path: Path) -> None:
    rows = F.normalize(torch.randn(4, 6)).half()
    save_file({"a": rows}, tmp_path / "heads.safetensors")
    heads = CosineHeads.load(tmp_path / "heads.safetensors")
    features = torch.randn(3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        logits = heads(features.bfloat16(), "a")
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, 100 * F.normalize(features.bfloat16().float()) @ rows.float().T)


def test_heads_are_frozen() -> None:
    assert not any(row.requires_grad for row in CosineHeads({"a": torch.eye(3)}).parameters())


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"nowhere\.safetensors: no such file"):
        CosineHeads.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("scale", ["hot", "nan", "0", "-4"])
def test_bad_scale(scale: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    save_file({"a": torch.eye(3)}, path, {"logit_scale": scale})
    with pytest.raises(MergeError, match=f"logit_scale is '{scale}'") as error:
        CosineHeads.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite(bad: float, tmp_path: Path) -> None:
    rows = torch.eye(3)
    rows[1, 1] = bad
    save_file({"a": torch.eye(3), "b": rows}, tmp_path / "heads.safetensors")
    with pytest.raises(MergeError, match="head b holds NaN or infinity") as error:
        CosineHeads.load(tmp_path / "heads.safetensors")
    assert error.value.task == "b"
