"""What is known of the Trainer's options without Lightning is what Lightning itself takes."""

import sys
from typing import Any, get_type_hints

import pytest
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import StrategyRegistry

from lit_merge.adaptation import callbacks
from lit_merge.cli.trainer_options import check_names, trainer_options, without_opaque
from lit_merge.errors import MergeError


def subclasses(of: type) -> set[type]:
    found = {of}
    for one in of.__subclasses__():
        if one.__module__.startswith("lightning."):
            found |= subclasses(one)
    return found


def test_types_are_lightnings() -> None:
    own = get_type_hints(Trainer.__init__)
    found = trainer_options().__init__.__signature__.parameters  # type: ignore[misc]
    for name, one in found.items():
        if one.annotation is not Any and name != "self":
            assert one.annotation == own[name], name
    assert {"accelerator", "strategy", "callbacks", "logger", "plugins", "profiler"} == {
        name for name, one in found.items() if one.annotation is Any
    }


def test_right_names_are_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    strategies, accelerators = StrategyRegistry.available_strategies(), AcceleratorRegistry.available_accelerators()
    named = {
        "callbacks": subclasses(Callback) | {SaveConfigCallback, callbacks.RankSchedule},
        "logger": subclasses(Logger),
    }
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    for strategy in [*strategies, "auto", "DDP"]:
        check_names(Namespace(strategy=strategy), [])
    for accelerator in [*accelerators, "auto", "gpu"]:
        check_names(Namespace(accelerator=accelerator), [])
    for option, classes in named.items():
        check_names(Namespace({option: [{"class_path": one.__name__} for one in classes]}), [])
    for logger in (True, False, "true", "false", None):
        check_names(Namespace(logger=logger), [])
    # Another package may register names of its own.
    check_names(Namespace(strategy="dpp"), ["--trainer.callbacks+=elsewhere.Callback"])
    with pytest.raises(MergeError, match=r"trainer.strategy: Lightning has no 'dpp'; the nearest is ddp"):
        check_names(Namespace(strategy="dpp"), ["--trainer.callbacks+=Timer"])


def test_only_what_is_added_to_is_left_out() -> None:
    given = ["--trainer.accelerator", "cpu", "--trainer.strategy=ddp", "--run", "r"]
    added = ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration", "1", "--trainer.callbacks+", "Timer"]
    assert without_opaque([*given[:2], *added, *given[2:]], trainer_options()) == given
