"""Heads as files: what is read, and one line for what cannot be."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from lit_merge import MergeError, ReleasedHeads
from lit_merge.networks import CosineHeads
from lit_merge.networks.heads.linear import load_heads


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


def test_mixed_is_all_heads_one_after_the_other() -> None:
    rows = {task: F.normalize(torch.randn(n, 6)) for task, n in {"a": 2, "b": 3, "c": 4}.items()}
    heads, features = CosineHeads(rows), torch.randn(5, 6)
    logits = torch.cat([heads(features, task) for task in rows], dim=1)
    torch.testing.assert_close(heads(features, "mixed"), logits)
    assert heads.classes("mixed") == 9
    assert [heads.first_row("mixed", task) for task in rows] == [0, 2, 5]
    assert [heads.first_row(task, task) for task in rows] == [0, 0, 0]


def test_only_merged_tasks_are_mixed() -> None:
    heads, features = (
        CosineHeads({task: torch.eye(n, 6) for task, n in {"a": 2, "b": 3, "c": 4}.items()}),
        torch.ones(1, 6),
    )
    heads.mix(["c", "a"])
    assert torch.equal(heads(features, "mixed"), torch.cat([heads(features, "c"), heads(features, "a")], dim=1))
    assert heads.first_row("mixed", "a") == 4
    assert heads.classes("b") == 3
    with pytest.raises(MergeError, match="task b is not among those that are mixed: c, a"):
        heads.first_row("mixed", "b")
    with pytest.raises(MergeError, match="no head for task 'd'"):
        heads.mix(["a", "d"])


def test_heads_that_cannot_be_mixed() -> None:
    with pytest.raises(MergeError, match="a task called 'mixed'"):
        CosineHeads({"mixed": torch.eye(3)})
    heads = CosineHeads({"a": torch.eye(2, 6), "b": torch.eye(2, 5)})
    assert heads.classes("b") == 2
    with pytest.raises(MergeError, match="several widths"):
        heads.classes("mixed")


class TheirHead(torch.nn.Linear):
    """As the task-arithmetic code has it: features normalised, then a linear map whose rows hold the scale."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features / features.norm(dim=-1, keepdim=True))


def released(folder: Path, **changes: torch.Tensor) -> dict[str, TheirHead]:
    """Files as released, with names of both releases."""
    torch.manual_seed(0)
    made = {}
    for task, classes in (("Cars", 5), ("DTD", 3)):
        head = TheirHead(8, classes)
        head.weight.data = 100 * torch.nn.functional.normalize(torch.randn(classes, 8))
        head.bias.data.zero_()
        made[task] = head
        name = f"head_{task}Val.safetensors" if task == "DTD" else f"head_{task}.safetensors"
        values = {name: value.clone() for name, value in head.state_dict().items()}
        save_file(values | (changes if task == "DTD" else {}), folder / name)
    return made


def test_released_heads_give_the_logits_that_they_gave(tmp_path: Path) -> None:
    theirs, features = released(tmp_path), torch.randn(6, 8)
    named = {"cars": str(tmp_path / "head_Cars.safetensors"), "textures": str(tmp_path / "head_DTDVal.safetensors")}
    for heads in (load_heads(tmp_path), ReleasedHeads(named).build("ViT-B-32")):
        assert len(heads.tasks) == 2
        for task, head in zip(heads.tasks, theirs.values(), strict=True):
            torch.testing.assert_close(heads(features, task), head(features), rtol=1e-5, atol=1e-4)
    assert load_heads(tmp_path).tasks == ("Cars", "DTD")
    with pytest.raises(MergeError, match="head Cars is 8 wide, the encoder's features 9"):
        load_heads(tmp_path)(torch.randn(1, 9), "Cars")


def test_a_release_of_whole_modules(tmp_path: Path) -> None:
    theirs, features = released(tmp_path), torch.randn(6, 8)
    expected = load_heads(tmp_path)
    for file, module in zip(sorted(tmp_path.glob("head_*")), theirs.values(), strict=True):
        file.unlink()
        torch.save(module, file.with_suffix(".pt"))
    found = load_heads(tmp_path)
    for task in expected.tasks:
        assert torch.equal(found(features, task), expected(features, task))


def test_released_heads_that_are_none(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(MergeError) as caught:
            load_heads(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "holds no head_TASK.pt" in said(tmp_path)
    for change, words in (
        ({"bias": torch.ones(3)}, "head DTD has a bias that is not 0"),
        ({"weight": torch.full((3, 8), float("nan"))}, "head weight holds NaN"),
        ({"weight": torch.ones(3)}, "head weight has shape [3], expected classes × width"),
    ):
        released(tmp_path, **change)
        assert words in said(tmp_path)
        assert "head_DTDVal.safetensors" in said(tmp_path)
    released(tmp_path)
    save_file({"weight": torch.ones(3, 8)}, tmp_path / "head_DTD.safetensors")
    assert "two heads of task DTD" in said(tmp_path)
    with pytest.raises(MergeError, match="nowhere"):
        ReleasedHeads({"Cars": str(tmp_path / "nowhere.pt")}).build("ViT-B-32")
