"""The tests' own checks of types and shapes see what is wrong, in the package's functions too."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from lit_merge.objectives import Entropy
from tests.shape_checks import checked

wrong = pytest.raises(TypeError, match="violates type hint")


@checked(typechecker=beartype)
def outer(a: Float[Tensor, " n"], b: Float[Tensor, " m"], square: bool = False) -> Float[Tensor, "n m"]:
    return (b[:, None] * a[None]) if square else a[:, None] * b


@checked(typechecker=beartype)
def length(text: str, known: "NowhereToBeFound" = None) -> int:  # type: ignore[name-defined]
    return None if text == "wrong" else len(text)


@checked(typechecker=beartype)
@dataclass(frozen=True)
class Pair:
    first: Float[Tensor, " n"]
    second: Float[Tensor, " n"]
    names: list[str] = field(default_factory=list)


def test_fields_of_a_dataclass() -> None:
    assert Pair(torch.ones(2), torch.ones(2)).names == []
    for given in ((torch.ones(2), torch.ones(3)), (2.0, torch.ones(2))):
        with wrong:
            Pair(*given)  # type: ignore[arg-type]


def test_sizes_of_one_name_are_equal_within_a_call() -> None:
    three, two = torch.ones(3), torch.ones(2)
    assert outer(three, two).shape == (3, 2)
    assert outer(two, three).shape == (2, 3)
    with wrong:
        outer(three, two, square=True)
    with wrong:
        outer(three[None], two)
    with wrong:
        outer(three.int(), two)


def test_plain_types() -> None:
    assert length("four", known=3) == 4
    for value in (4, "wrong"):
        with wrong:
            length(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [torch.zeros(3), [[0.5, 0.5]]])
def test_functions_of_the_package(given: Any) -> None:
    objective: Callable[[Any], Tensor] = Entropy()
    with wrong:
        objective(given)
