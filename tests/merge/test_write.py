"""`merge_files`: what the verb `merge` writes, from Python."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import CART, ESM, TIES, MergeError, MergeMethod, TaskArithmetic, build_bank, merge_files

SHAPES = {"h.0.fc.weight": (24, 16), "h.1.fc.weight": (16, 24), "h.0.fc.bias": (24,), "classifier.weight": (3, 16)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("experts")
    found = {}
    for seed, name in enumerate(("base", "a", "b", "c")):
        generator = torch.Generator().manual_seed(seed)
        found[name] = folder / f"{name}.safetensors"
        save_file({key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}, found[name])
    return found


@pytest.mark.parametrize(
    "method",
    [CART(0.3), TIES(), TaskArithmetic("self_consistent"), ESM(preset="paper", matrices=["*.fc.weight"])],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.filterwarnings("ignore:.*second moments.*", "ignore:.*self_consistent overshoots.*")
def test_files_are_the_banks_merge(method: MergeMethod, files: dict[str, Path], tmp_path: Path) -> None:
    experts = {task: files[task] for task in "abc"}
    merge_files(
        experts,
        tmp_path / "out.safetensors",
        files["base"],
        method=method,
        exclude=["classifier.*"],
        naming="canonical",
    )
    merge_files(experts, tmp_path / "out", files["base"], method=method, max_shard_size="2KB")
    bank = build_bank(experts, files["base"], method=method, exclude=["classifier.*"])
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors"), bank.merge(naming="canonical"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_what_stands_there_stays(files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    output.write_text("mine")
    experts = {task: files[task] for task in "abc"}
    with pytest.raises(MergeError, match=r"out\.safetensors"):
        merge_files(experts, output, method=CART(0.3))
    with pytest.raises(MergeError, match=r"was not written by `lit-merge merge`"):
        merge_files(experts, output, method=CART(0.3), overwrite=True)
    assert output.read_text() == "mine"
    output.unlink()
    for scaling in (1.0, 0.0):
        merge_files(experts, output, method=CART(0.3, scaling=scaling), overwrite=True)
        assert set(load_file(output)) == set(SHAPES)
    for place in (files["a"], files["a"].parent):
        with pytest.raises(MergeError, match="read, and would be replaced"):
            merge_files(experts, place, method=CART(0.3), overwrite=True)
    assert all(path.exists() for path in files.values())


def test_a_scale_that_asks_for_data_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="entropy"):
        merge_files({"a": files["a"]}, tmp_path / "out", files["base"], method=TaskArithmetic("entropy"))
    assert list(tmp_path.iterdir()) == []
