"""Values that stay where they are, as in a file, until they are asked for, and again afterwards."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")


class OnDemand(Mapping[str, V]):
    """name → value, made whenever it is asked for: what nobody holds any more takes no memory.

    Args:
        names: all that can be asked for.
        make: answers the value of a name.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], V]) -> None:
        self._names, self._make = dict.fromkeys(names), make

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

    def __reduce__(self) -> tuple[type, tuple[dict[str, V]]]:
        """Another process, or a copy, holds the values themselves."""
        return dict, (dict(self),)


def mapping_like(names: Collection[str], make: Callable[[str], V], source: Mapping[str, Any]) -> Mapping[str, V]:
    """name → make(name), made at once; or on demand, where the values of `source` are made on demand."""
    return OnDemand(names, make) if isinstance(source, OnDemand) else {name: make(name) for name in names}


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
