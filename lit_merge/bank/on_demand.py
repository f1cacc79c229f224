"""Values that stay where they are, as in a file, until they are asked for, and again afterwards."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_merge.console import listed

V = TypeVar("V")


class OnDemand(Mapping[str, V]):
    """name → value, made whenever it is asked for: what nobody holds any more takes no memory.

    Args:
        names: all that can be asked for.
        make: answers the value of a name.
        empty: answers what has its shape and dtype, on the device `meta`.
        part: of values that are made of several tensors, answers the one of a name that files use, and makes no other;
            None where they are not, or take no time.
        row: likewise, answers the part (1, …) of one task of such a tensor; None where all of it must be made.
    """

    def __init__(
        self,
        names: Iterable[str],
        make: Callable[[str], V],
        empty: Callable[[str], V],
        part: Callable[[str], Tensor] | None = None,
        row: Callable[[str, int], Tensor] | None = None,
    ) -> None:
        self._names, self._make, self._empty = dict.fromkeys(names), make, empty
        self.part, self.row = part, row

    def __getitem__(self, name: str) -> V:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"{len(self)} values, made when they are asked for: {listed(list(self))}"

    def __reduce__(self) -> tuple[type, tuple[dict[str, V]]]:
        """Another process, or a copy, holds the values themselves."""
        return dict, (dict(self),)

    @property
    def emptied(self) -> "OnDemand[V]":
        return OnDemand(self._names, self._empty, self._empty)


def without_values(source: Mapping[str, V]) -> Mapping[str, V]:
    """For questions of shapes and dtypes: what answers them and need not be made, where values are made on demand."""
    return source.emptied if isinstance(source, OnDemand) else source


def mapping_like(
    names: Iterable[str],
    make: Callable[[Mapping[str, Any], str], V],
    source: Mapping[str, Any],
    part: Callable[[str], Tensor] | None = None,
    row: Callable[[str, int], Tensor] | None = None,
) -> Mapping[str, V]:
    """name → make(source, name), made at once; or on demand, where the values of `source` are made on demand."""
    if isinstance(source, OnDemand):
        return OnDemand(names, functools.partial(make, source), functools.partial(make, source.emptied), part, row)
    return {name: make(source, name) for name in names}


def asked_again(make: Callable[[int], Tensor], now: Sequence[Tensor]) -> AbstractContextManager[None]:
    """What autograd saves of these tensors inside is that they are to be asked for again: its graph holds none of them.

    Args:
        make: answers the tensor of this position anew.
        now: all of them, as they have just been made.
    """
    places = {(value.data_ptr(), value.shape): i for i, value in enumerate(now)}

    def save(value: Tensor) -> Tensor | int:
        return places.get((value.data_ptr(), value.shape), value)

    def find(saved: Tensor | int) -> Tensor:
        return make(saved) if isinstance(saved, int) else saved

    return torch.autograd.graph.saved_tensors_hooks(save, find)
