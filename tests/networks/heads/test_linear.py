"""Linear heads as files, for any network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import LinearHeads, MergeError, OpenClipImageEncoder
from lit_merge.networks import CosineHeads
from lit_merge.networks.heads.linear import load_heads


def test_the_names_in_a_file_say_what_it_is(tmp_path: Path) -> None:
    rows, bias, features = torch.randn(4, 6), torch.randn(4), torch.randn(3, 6)
    save_file({"a.weight": rows, "a.bias": bias, "b.weight": rows[:2].clone()}, tmp_path / "linear.safetensors")
    save_file({"a": rows}, tmp_path / "cosine.safetensors")
    heads = load_heads(tmp_path / "linear.safetensors")
    assert isinstance(heads, LinearHeads)
    assert isinstance(load_heads(tmp_path / "cosine.safetensors"), CosineHeads)
    torch.testing.assert_close(heads(features, "a"), features @ rows.T + bias)
    torch.testing.assert_close(heads(features, "b"), features @ rows[:2].T)
    torch.testing.assert_close(heads(features, "mixed"), torch.cat([heads(features, "a"), heads(features, "b")], 1))
    assert (heads.classes("mixed"), heads.first_row("mixed", "b")) == (6, 4)
    with pytest.raises(MergeError, match="no head for task 'c'; there are heads for a, b"):
        heads(features, "c")
    with pytest.raises(MergeError, match="head a is 6 wide, the encoder's features 5: give heads that were made for"):
        heads(features[:, :5], "a")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a.weight": torch.ones(2, 3), "a.bias": torch.ones(3)}, "has 2 classes in its weight and shape [3] in its"),
        ({"a.weight": torch.ones(2), "a.bias": torch.ones(2)}, "head a.weight has shape [2], expected classes × width"),
        ({"a.weight": torch.ones(2, 3), "b.bias": torch.ones(3)}, "b.bias is no part of linear heads"),
        ({"a.weight": torch.full((2, 3), torch.nan)}, "head a.weight holds NaN or infinity"),
        ({"a.weight": torch.ones(2, 3), "a.bias": torch.full((2,), torch.inf)}, "head a.bias holds NaN or infinity"),
        ({"mixed.weight": torch.ones(2, 3)}, "a task called 'mixed'"),
    ],
)
def test_files_that_hold_none(tensors: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "heads.safetensors")
    with pytest.raises(MergeError) as error:
        load_heads(tmp_path / "heads.safetensors")
    assert said in str(error.value)
    assert str(tmp_path / "heads.safetensors") in str(error.value)


def test_on_images(tiny: Any, tmp_path: Path) -> None:
    rows, bias = torch.randn(3, 16), torch.randn(3)
    save_file({"alpha.weight": rows, "alpha.bias": bias}, tmp_path / "heads.safetensors")
    network = OpenClipImageEncoder(tiny.network, str(tmp_path / "heads.safetensors"))
    images, weights = torch.randint(256, (2, 16, 16), dtype=torch.uint8), load_file(tiny.base)
    features = network.holding(weights, lambda: network.encode(images))
    torch.testing.assert_close(network(weights, {"alpha": images})["alpha"], features @ rows.T + bias)
