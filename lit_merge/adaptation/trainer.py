"""Lightning's Trainer, as this package uses it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl


class Trainer(pl.Trainer):
    """Lightning's, which does not declare that its callbacks are a list that may be changed."""

    callbacks: list[pl.Callback]


@contextmanager
def passing_interrupts() -> Iterator[None]:
    """Around Lightning's verbs: Ctrl-C stays a KeyboardInterrupt. Lightning makes it an exit with code 1 and without a
    word, and ignores every later one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from error
        raise
