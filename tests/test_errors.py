"""No option is NaN, infinite, or a word that nothing knows, in any class of options there is."""

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from lit_merge import (
    AWD,
    CART,
    ESM,
    TIES,
    AdaRank,
    ImageFolders,
    MergeError,
    MergeMethod,
    Prototypes,
    RankSchedule,
    ResumePoint,
    RoutedModel,
    Stage,
    TextFiles,
    Transform,
    build_bank,
)
from lit_merge.adaptation.options import Adaptation
from lit_merge.choose.sweep import Grid
from lit_merge.errors import Finite, check_finite
from lit_merge.merge.export import export_bank
from lit_merge.networks import CosineHeads
from lit_merge.objectives import ExpertAgreement, Objective


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


WORDS = [
    (cls, one.name)
    for cls in (Adaptation, *dict.fromkeys(classes(Finite)))
    for one in fields(cls)  # type: ignore[arg-type]
    if any(get_origin(part) is Literal for part in (one.type, *get_args(one.type))) and str not in get_args(one.type)
]


def test_all_kinds_of_words_are_among_them() -> None:
    found = {cls for cls, _ in WORDS}
    assert {Adaptation, Stage, ExpertAgreement, ESM, TIES, AWD, CART} <= found


@pytest.mark.parametrize(("cls", "name"), WORDS, ids=[f"{cls.__name__}.{name}" for cls, name in WORDS])
def test_words(cls: Any, name: str) -> None:
    made = cls()
    object.__setattr__(made, name, "nonsense")  # types are checked in the tests, as they are not for users
    with pytest.raises(MergeError, match=f"{name}='nonsense': expected .*\\w"):
        made.__post_init__()


OTHERS: dict[str, Callable[[Any, Any], object]] = {
    "order": lambda tiny, bank: tiny.data(protocol="online", order="nonsense"),
    "protocol": lambda tiny, bank: tiny.data(protocol="nonsense"),
    "on_bad_image": lambda tiny, bank: ImageFolders(test=tiny.test_folders, on_bad_image="nonsense"),  # type: ignore[arg-type]
    "on_leak": lambda tiny, bank: ImageFolders(test=tiny.test_folders, on_leak="nonsense"),  # type: ignore[arg-type]
    "on_empty": lambda tiny, bank: TextFiles(on_empty="nonsense"),  # type: ignore[arg-type]
    "RankSchedule: unit": lambda tiny, bank: RankSchedule({0: 0.5}, unit="nonsense"),  # type: ignore[arg-type]
    "RankSchedule: shape": lambda tiny, bank: RankSchedule({0: 0.5}, shape="nonsense"),  # type: ignore[arg-type]
    "svd": lambda tiny, bank: build_bank(tiny.experts, method=CART(), svd="nonsense"),  # type: ignore[arg-type]
    "route": lambda tiny, bank: RoutedModel(
        bank,
        tiny.encoder(),
        Prototypes.collect(bank, tiny.encoder(), tiny.data()),
        "nonsense",  # type: ignore[arg-type]
    ),
    "dtype": lambda tiny, bank: export_bank(bank, "nowhere", dtype="nonsense"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", OTHERS)
def test_words_of_what_is_no_dataclass(name: str, tiny: Any, usual_bank: Any) -> None:
    with pytest.raises(MergeError, match=f"^{name}='nonsense': expected .* or "):
        OTHERS[name](tiny, usual_bank)


def test_weights_are_never_whole_numbers(tiny: Any, usual_bank: Any) -> None:
    for work in (
        lambda: usual_bank.to(torch.int8),
        lambda: usual_bank.merge(dtype=torch.int32),
        lambda: build_bank(tiny.experts, method=CART(0.5), dtype=torch.int16),
    ):
        with pytest.raises(MergeError, match=r"dtype=torch\.int\d+: expected floating point"):
            work()


def test_names_of_nested_options() -> None:
    check_finite({"a": {"init_args": {"b": [1, 2.0, None, "nan", True]}}})
    with pytest.raises(MergeError, match=r"^x: a\.b\[1\]\.c=inf: expected a finite number$"):
        check_finite({"a": {"init_args": {"b": [1.0, {"c": math.inf}]}}}, "x")
