"""No option is NaN or infinite, in any class of options there is."""

import math
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import pytest

from lit_merge import CART, AdaRank, MergeError, MergeMethod, ResumePoint, Stage, Transform, build_bank
from lit_merge.choose.sweep import Grid
from lit_merge.errors import Finite, check_finite
from lit_merge.networks import CosineHeads
from lit_merge.objectives import Objective


def classes(cls: type) -> Iterator[type]:
    for one in cls.__subclasses__():
        if (
            one.__module__.startswith("lit_merge.")
            and not one.__name__.startswith("_")
            and not getattr(one, "__abstractmethods__", None)
        ):
            yield one
        yield from classes(one)


OPTIONS = [
    (cls, one.name)
    for cls in dict.fromkeys(classes(Finite))
    if cls is not Grid
    for one in fields(cls)  # type: ignore[arg-type]
    if "float" in str(one.type) or "Scaling" in str(one.type)
]


def test_all_kinds_of_options_are_among_them() -> None:
    found = {cls for cls, _ in OPTIONS}
    assert {Stage, AdaRank, CART} <= found
    assert all(any(issubclass(one, kind) for one in found) for kind in (MergeMethod, Transform, Objective))
    assert len(OPTIONS) > 20


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("cls", "name"), OPTIONS, ids=[f"{cls.__name__}.{name}" for cls, name in OPTIONS])
def test_options(cls: Any, name: str, number: float) -> None:
    assert all(one.default is not MISSING or one.default_factory is not MISSING for one in fields(cls))
    with pytest.raises(MergeError, match=f"{cls.__name__}: {name}={number}: expected a finite number"):
        cls(**{name: number})


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_dataclass_of_options(number: float, make_model: Any, tiny: Any) -> None:
    for options in ({"sharpness": number}, {"bounds": (0.0, number)}):
        with pytest.raises(MergeError, match=r"(sharpness|bounds\[1\])=.*: expected a finite number"):
            make_model(**options)
    with pytest.raises(MergeError, match=r"Grid: scalings\[1\]="):
        Grid((CART(),), scalings=(1.0, number))
    with pytest.raises(MergeError, match=r"Grid: rank_ratios\[0\]="):
        Grid((CART(),), rank_ratios=(number,))
    with pytest.raises(MergeError, match="every_seconds"):
        ResumePoint(every_seconds=number)
    with pytest.raises(MergeError, match="logit_scale"):
        CosineHeads({}, number)
    bank = build_bank(tiny.experts, method=CART(0.5))
    with pytest.raises(MergeError, match="coefficients="):
        bank.merge(number)
    with pytest.raises(MergeError, match="scaling="):
        CART().at(number)


def test_names_of_nested_options() -> None:
    check_finite({"a": {"init_args": {"b": [1, 2.0, None, "nan", True]}}})
    with pytest.raises(MergeError, match=r"^x: a\.b\[1\]\.c=inf: expected a finite number$"):
        check_finite({"a": {"init_args": {"b": [1.0, {"c": math.inf}]}}}, "x")
