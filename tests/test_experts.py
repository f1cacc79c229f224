"""Experts that do not fit together are told apart by weight, shapes and files. Files: tests/test_cli.py."""

import pytest
import torch
from torch import Tensor

from lit_merge import CART, Experts, MergeError, MergeWarning, TaskArithmetic, WeightAveraging, build_bank

GOOD = {"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(3)}


def refused(experts: dict[str, dict[str, Tensor]], base: dict[str, Tensor] | None = None) -> MergeError:
    with pytest.raises(MergeError) as error:
        list(Experts(experts, base).stream(with_base=base is not None))
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


@pytest.mark.filterwarnings("ignore:the experts .* are identical")
def test_dtypes_of_experts_but_not_of_the_base() -> None:
    half = {name: value.half() for name, value in GOOD.items()}
    assert "float16" in str(refused({"one": GOOD, "two": half}))
    assert build_bank({"one": GOOD, "two": GOOD}, half, method=TaskArithmetic()).tasks == ("one", "two")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(bad: float) -> None:
    broken = GOOD["a.weight"].clone()
    broken[1, 2] = bad
    error = refused({"one": GOOD, "two": GOOD | {"a.weight": broken}})
    assert (error.task, error.weight) == ("two", "a.weight")
    assert "1 of 6 places" in str(error)
    assert refused({"one": GOOD}, GOOD | {"a.weight": broken}).task == "base"


def test_integers_that_differ() -> None:
    first, second = ({**GOOD, "steps": torch.tensor(n)} for n in (1, 2))
    error = refused({"one": first, "two": second})
    assert error.weight == "steps"
    assert "int64" in str(error)


def test_no_experts_and_no_base() -> None:
    assert "no experts" in str(refused({}))
    with pytest.raises(MergeError, match="needs the pretrained checkpoint"):
        build_bank({"one": GOOD, "two": GOOD}, method=TaskArithmetic())
    with pytest.raises(MergeError, match=r"b\.bias is a list"):
        build_bank({"one": {**GOOD, "b.bias": [1]}}, method=CART())  # type: ignore[dict-item]


def test_weights_come_one_at_a_time(tmp_path: object) -> None:
    from safetensors.torch import save_file

    paths = {}
    for task in ("one", "two"):
        paths[task] = tmp_path / f"{task}.safetensors"  # type: ignore[operator]
        save_file(GOOD, paths[task])
    stream = Experts(paths).stream(with_base=False)
    first = next(stream)
    assert first.name == "a.weight"
    assert first.experts.shape == (2, 2, 3)


def test_the_same_expert_twice_is_said() -> None:
    other = {name: value + 1 for name, value in GOOD.items()}
    with pytest.warns(MergeWarning, match="the experts one and three are identical: is a path wrong"):
        build_bank({"one": GOOD, "two": other, "three": dict(GOOD)}, method=WeightAveraging())
