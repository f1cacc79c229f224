"""Experts that do not fit together are reported by weight, shapes and files. Files: tests/cli."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import (
    CART,
    TIES,
    Experts,
    MergeError,
    MergeMethod,
    MergeWarning,
    TaskArithmetic,
    WeightAveraging,
    build_bank,
    merge_files,
)
from lit_merge.experts.files import expert_files
from lit_merge.experts.stream import WeightStream

GOOD = {"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(3)}


def refused(experts: dict[str, dict[str, Tensor]], base: dict[str, Tensor] | None = None) -> MergeError:
    with pytest.raises(MergeError) as error:
        list(WeightStream(Experts(experts, base), base is not None))
    assert "\n" not in str(error.value)
    return error.value


def test_shape_names_weight_shapes_and_both_sources() -> None:
    error = refused({"one": GOOD, "two": GOOD | {"a.weight": torch.ones(3, 2)}})
    assert (error.task, error.weight) == ("two", "a.weight")
    for text in ("a.weight", "[2, 3]", "[3, 2]", "expert one", "expert two"):
        assert text in str(error)


def test_names() -> None:
    error = refused({"one": GOOD, "two": {"a.weight": GOOD["a.weight"]}})
    assert (error.task, error.weight) == ("two", "b.bias")
    assert "expert two has no weight b.bias, which expert one has" in str(error)


@pytest.mark.filterwarnings("ignore:the expert.* (are identical|is the base)")
def test_dtypes_of_experts_but_not_of_the_base() -> None:
    half = {name: value.half() for name, value in GOOD.items()}
    assert "int32" in str(refused({"one": GOOD, "two": {name: value.int() for name, value in GOOD.items()}}))
    integers = {name: value.int() for name, value in GOOD.items()}
    assert "int32 in base" in str(refused({"one": GOOD, "two": GOOD}, integers))
    assert build_bank({"one": GOOD, "two": GOOD}, half, method=TaskArithmetic()).tasks == ("one", "two")


@pytest.mark.parametrize("method", [WeightAveraging(), TaskArithmetic(scaling=0.7), TIES(), CART(matrices=["w"])])
def test_experts_of_several_precisions(method: MergeMethod, tmp_path: Path) -> None:
    """What one dtype holds and the other does not is merged all the same; the first one's is written."""
    torch.manual_seed(0)
    kinds = {"one": torch.bfloat16, "two": torch.float16, "three": torch.float32}
    base, experts = {"w": torch.randn(8, 6)}, {task: {"w": torch.randn(8, 6).to(kind)} for task, kind in kinds.items()}
    with pytest.warns(MergeWarning, match=r"w is torch\.bfloat16 in one and torch\.float16 in two: merged in float32"):
        bank = build_bank(experts, base, method=method, dtype=torch.float32)
    whole = {task: {"w": value["w"].float()} for task, value in experts.items()}
    expected = build_bank(whole, base, method=method).merge()["w"]
    assert torch.equal(bank.merge(dtype=torch.float32)["w"], expected)
    assert bank.merge()["w"].dtype == torch.bfloat16
    with pytest.warns(MergeWarning, match="in --dtype"):
        merge_files(experts, tmp_path / "m.safetensors", base, method=method, dtype=torch.float32)
    torch.testing.assert_close(load_file(tmp_path / "m.safetensors")["w"], expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(bad: float) -> None:
    broken = GOOD["a.weight"].clone()
    broken[1, 2] = bad
    error = refused({"one": GOOD, "two": GOOD | {"a.weight": broken}})
    assert (error.task, error.weight) == ("two", "a.weight")
    assert "1 of 6 places" in str(error)
    assert refused({"one": GOOD}, GOOD | {"a.weight": broken}).task == "base"


def test_integers_that_differ() -> None:
    first, second = ({**GOOD, "indices": torch.tensor([n])} for n in (1, 2))
    error = refused({"one": first, "two": second})
    assert error.weight == "indices"
    assert "int64" in str(error)


@pytest.mark.filterwarnings("ignore:the expert.* (are identical|is the base)")
def test_counters_that_differ_are_the_first_experts() -> None:
    first, second = ({**GOOD, "bn.num_batches_tracked": torch.tensor(n)} for n in (10, 250))
    with pytest.warns(MergeWarning, match=r"counters that differ, as bn\.num_batches_tracked, are those of one"):
        merged = build_bank({"one": first, "two": second}, first, method=TaskArithmetic()).merge()
    assert merged["bn.num_batches_tracked"].item() == 10


def test_running_statistics_are_averaged() -> None:
    """Task arithmetic would put .1 + .3 − 2 in the place of a variance."""
    stored = {"one": 0.1, "two": 0.3, "base": 2.0}
    names = ("bn.weight", "bn.running_var")
    layers = {task: {name: torch.full((6,), value) for name in names} for task, value in stored.items()}
    base = layers.pop("base")
    for method in (TaskArithmetic(scaling=1.0), TIES(), WeightAveraging()):
        with pytest.warns(MergeWarning, match=r"running means and variances, as bn\.running_var, are averaged"):
            bank = build_bank(layers, base, method=method)
        torch.testing.assert_close(bank.merge()["bn.running_var"], torch.full((6,), 0.2))
        assert "bn.running_var" not in bank.layers


def test_a_base_among_the_experts(tmp_path: Path) -> None:
    tuned = {name: value + 1 for name, value in GOOD.items()}
    with pytest.warns(MergeWarning, match="the expert one is the base: is a path wrong"):
        build_bank({"one": GOOD, "two": tuned}, GOOD, method=TaskArithmetic())
    # Where the base's values are not read, its file tells.
    paths = {"one": tmp_path / "base.safetensors", "two": tmp_path / "two.safetensors"}
    for path, weights in zip(paths.values(), (GOOD, tuned), strict=True):
        save_file(weights, path)
    with pytest.warns(MergeWarning, match="the expert one is the base: is a path wrong"):
        build_bank(paths, paths["one"], method=WeightAveraging())


@pytest.mark.parametrize(
    "unfit", [torch.ones(2, dtype=torch.complex64), torch.ones(2).to(torch.float8_e4m3fn), 3, None]
)
@pytest.mark.filterwarnings("ignore:the expert.* (are identical|is the base)")
def test_what_is_excluded_may_be_anything(unfit: object) -> None:
    experts = {task: {**GOOD, "epoch": unfit} for task in ("one", "two")}
    with pytest.raises(MergeError, match=r"epoch is .*exclude: \[epoch\]"):
        build_bank(experts, method=WeightAveraging())  # type: ignore[arg-type]
    merged = build_bank(experts, method=WeightAveraging(), exclude=["epoch"]).merge()  # type: ignore[arg-type]
    assert merged.keys() == GOOD.keys()


def test_no_experts_and_no_base() -> None:
    assert "no experts" in str(refused({}))
    with pytest.raises(MergeError, match="needs the pretrained checkpoint"):
        build_bank({"one": GOOD, "two": GOOD}, method=TaskArithmetic())
    with pytest.raises(MergeError, match=r"b\.bias is a list"):
        build_bank({"one": {**GOOD, "b.bias": [1]}}, method=CART())  # type: ignore[dict-item]


def test_weights_come_one_at_a_time(tmp_path: object) -> None:
    paths = {}
    for task in ("one", "two"):
        paths[task] = tmp_path / f"{task}.safetensors"  # type: ignore[operator]
        save_file(GOOD, paths[task])
    stream = iter(WeightStream(Experts(paths), False))
    first = next(stream)
    assert first.name == "a.weight"
    assert first.experts.shape == (2, 2, 3)


def test_the_same_expert_twice_is_said() -> None:
    other = {name: value + 1 for name, value in GOOD.items()}
    with pytest.warns(MergeWarning, match="the experts one and three are identical: is a path wrong"):
        build_bank({"one": GOOD, "two": other, "three": dict(GOOD)}, method=WeightAveraging())


def test_a_folder_of_models_of_every_kind(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "a.safetensors")
    torch.save(GOOD, tmp_path / "b.x.pt")
    torch.save({"state_dict": GOOD}, tmp_path / "c.ckpt")
    (tmp_path / "d").mkdir()
    save_file(GOOD, tmp_path / "d" / "model.safetensors")
    (tmp_path / "logs").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / ".hidden.pt").write_text("no model")
    files = expert_files(str(tmp_path))
    assert list(files) == ["a", "b.x", "c", "d"]
    assert Experts(files).shapes == Experts({"one": GOOD}).shapes
    assert expert_files(files) is files


def test_a_base_and_heads_among_the_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the task-arithmetic release has them: a base that counts as an expert is one task more, of task vector 0."""
    for task in ("CarsVal", "MNIST"):
        (tmp_path / task).mkdir()
        torch.save(GOOD, tmp_path / task / ("finetuned.pt" if task == "MNIST" else "nonlinear_finetuned.pt"))
        torch.save({"weight": torch.zeros(2, 3)}, tmp_path / f"head_{task}.pt")
    torch.save(GOOD, tmp_path / "zeroshot.pt")
    expected = {"Cars": f"{tmp_path}/CarsVal", "MNIST": f"{tmp_path}/MNIST"}
    with pytest.warns(MergeWarning, match="zeroshot.pt: a base by its name, so none of the experts"):
        assert expert_files(str(tmp_path)) == expected
    assert Experts(expected).shapes == Experts({"one": GOOD}).shapes
    assert expert_files(str(tmp_path), f"{tmp_path}/zeroshot.pt") == expected
    (tmp_path / "zeroshot.pt").rename(tmp_path / "start.pt")
    assert expert_files(str(tmp_path), f"{tmp_path}/start.pt") == expected
    monkeypatch.chdir(tmp_path)
    assert expert_files(str(tmp_path), "start.pt") == expected
    assert list(expert_files(str(tmp_path))) == ["Cars", "MNIST", "start"]
    shutil.rmtree(tmp_path / "CarsVal")
    shutil.rmtree(tmp_path / "MNIST")
    (tmp_path / "start.pt").rename(tmp_path / "base.pt")
    assert list(expert_files(str(tmp_path))) == ["base"]


def test_folders_that_are_none_of_experts(tmp_path: Path) -> None:
    def said(folder: Path) -> str:
        with pytest.raises(MergeError) as error:
            expert_files(str(folder))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no such folder of experts" in said(tmp_path / "absent")
    assert "holds no model, expected one for every task" in said(tmp_path)
    torch.save(GOOD, tmp_path / "a.pt")
    save_file(GOOD, tmp_path / "a.safetensors")
    assert f"holds task a twice: {tmp_path / 'a.pt'} and {tmp_path / 'a.safetensors'}; keep one" in said(tmp_path)
    (tmp_path / "a.pt").unlink()
    (tmp_path / "a").mkdir()
    torch.save(GOOD, tmp_path / "a" / "pytorch_model.bin")
    assert "holds task a twice" in said(tmp_path)
    (tmp_path / "a" / "pytorch_model.bin.index.json").write_text("{}")
    assert "is the folder of one model" in said(tmp_path / "a")
