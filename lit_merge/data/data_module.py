"""A LightningDataModule that is defined without Lightning: importing it takes seconds, which nobody who only names or
reads data waits for."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
else:
    # It joins when data is made, see `_with_hooks`.
    LightningDataModule = object

_only_read: ContextVar[bool] = ContextVar("only_read", default=False)
Data = TypeVar("Data", bound="DataModule")


class DataModule(LightningDataModule):
    """A LightningDataModule whose Lightning part joins when an object is made, unless it is `only_read`."""

    trainer: Any = None

    def __new__(cls: type[Data], *args: Any, **options: Any) -> Data:
        kind: Any = cls
        made: Data = object.__new__(kind if _only_read.get() else _with_hooks(kind))
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_again, (getattr(type(self), "plain", None) or type(self),), self.__dict__


@contextmanager
def only_read() -> Iterator[None]:
    """Inside, data is made without Lightning: it can be read, and no Trainer takes it."""
    token = _only_read.set(True)
    try:
        yield
    finally:
        _only_read.reset(token)


@functools.cache
def _with_hooks(cls: type[Data]) -> type[Data]:
    """The class with Lightning's hooks."""
    from lightning.pytorch import LightningDataModule as Hooks

    if not TYPE_CHECKING and issubclass(cls, Hooks):
        return cls
    # A private name: a configuration names the class itself.
    names = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}._DataModule", "plain": cls}
    return type(cls.__name__, (cls, Hooks), names)


def _make_again(cls: type[Data]) -> Data:
    return cls.__new__(cls)
