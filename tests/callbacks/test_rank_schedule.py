"""RankSchedule: the ratio as a function of step or epoch, in a real fit."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from lightning.pytorch import Callback

from lit_merge import CART, MergedModel, MergeError, RankSchedule, Stage
from lit_merge.callbacks.rank_schedule import rank_ratio_at
from lit_merge.trainer import Trainer


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("constant", [0.4, 0.4, 0.4, 0.2, 0.2]), ("linear", [0.4, 0.35, 0.3, 0.2, 0.2])],
)
def test_shapes(shape: str, expected: list[float]) -> None:
    found = [rank_ratio_at({4: 0.2, 0: 0.4}, step, shape) for step in (0, 1, 2, 4, 9)]
    assert found == pytest.approx(expected)


def test_cosine_is_slow_at_both_ends() -> None:
    values = [rank_ratio_at({0: 0.4, 10: 0.2}, step, "cosine") for step in range(11)]
    steps = [a - b for a, b in pairwise(values)]
    assert values[5] == pytest.approx(0.3)
    assert steps[0] < steps[4]
    assert steps[9] < steps[5]
    assert min(steps) > 0


def test_before_the_first_milestone_its_ratio_holds() -> None:
    assert rank_ratio_at({5: 0.3, 9: 0.1}, 0, "linear") == 0.3


@pytest.mark.parametrize("ratios", [{}, {-1: 0.5}, {0: 0.0}, {0: 1.5}])
def test_mistakes(ratios: dict[int, float]) -> None:
    with pytest.raises(MergeError):
        RankSchedule(ratios)


class Watch(Callback):
    def __init__(self) -> None:
        self.ranks: list[int] = []
        self.logged: list[float] = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.ranks.append(max(pl_module.bank.ranks.values()))

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        self.logged.append(float(trainer.progress_bar_metrics["rank_ratio"]))


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ({"ratios": {0: 0.125, 2: 0.25, 4: 1.0}}, [4, 4, 8, 8, 16, 16]),
        ({"ratios": {0: 0.125, 4: 0.25}, "shape": "linear"}, [4, 5, 6, 7, 8, 8]),
        ({"ratios": {0: 0.125, 1: 0.25}, "unit": "epoch"}, [4, 4, 4, 8, 8, 8]),
    ],
)
def test_in_a_fit(
    options: dict[str, Any],
    ranks: list[int],
    make_model: Callable[..., MergedModel],
    make_trainer: Callable[..., Trainer],
    tiny: Any,
) -> None:
    watch, model = Watch(), make_model(CART(rank_ratio=0.5, scaling=1.0), stages=(Stage("layer", 6, 0.01),))
    trainer = make_trainer(max_steps=6, callbacks=[RankSchedule(**options), watch])
    trainer.fit(model, datamodule=tiny.data(batch_size=12))
    assert watch.ranks == ranks
    assert watch.logged[-1] == pytest.approx(max(options["ratios"].values()))
    assert max(model.to_bank().ranks.values()) == ranks[-1]
