"""Decompositions in files: those of one matrix are not taken for another's."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import MergeError
from lit_merge.experts.decompositions import Decompositions


def test_a_file_under_the_name_of_another_matrix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 2, 5, 4)
    kept = Decompositions(tmp_path)
    kept.get("a", first, 2)
    kept.get("b", second, 2)
    again = Decompositions(tmp_path)
    torch.testing.assert_close(again.get("b", second, 4).to_dense(), second)
    assert again.computed == 0
    a, b = (kept.folder / f"{name}.safetensors" for name in "ab")
    shutil.copyfile(a, b)
    with pytest.raises(MergeError, match=f"{b} is no decomposition of b: remove it"):
        Decompositions(tmp_path).get("b", second, 2)
    (kept.folder / ".b.safetensors.abc.writing").mkdir()  # of a killed command
    Decompositions(tmp_path)
    assert sorted(kept.folder.iterdir()) == [a, b]
    save_file(load_file(a), a)  # of a time before files said it
    torch.testing.assert_close(Decompositions(tmp_path).get("a", first, 4).to_dense(), first)
    with pytest.raises(MergeError, match="is no decomposition of a"):
        Decompositions(tmp_path).get("a", torch.randn(2, 5, 6), 2)
