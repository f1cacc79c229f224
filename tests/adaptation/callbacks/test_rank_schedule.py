"""RankSchedule: the ratio as a function of step or epoch, in a real fit."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lit_merge import CART, CollapseGuard, CompressionExport, LowRank, MergedModel, MergeError, RankSchedule, Stage
from lit_merge.adaptation.callbacks.rank_schedule import share_at
from lit_merge.adaptation.trainer import Trainer


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("constant", [0.4, 0.4, 0.4, 0.2, 0.2]), ("linear", [0.4, 0.35, 0.3, 0.2, 0.2])],
)
def test_shapes(shape: str, expected: list[float]) -> None:
    found = [share_at({4: 0.2, 0: 0.4}, step, shape) for step in (0, 1, 2, 4, 9)]
    assert found == pytest.approx(expected)


def test_cosine_is_slow_at_both_ends() -> None:
    values = [share_at({0: 0.4, 10: 0.2}, step, "cosine") for step in range(11)]
    steps = [a - b for a, b in pairwise(values)]
    assert values[5] == pytest.approx(0.3)
    assert steps[0] < steps[4]
    assert steps[9] < steps[5]
    assert min(steps) > 0


def test_before_the_first_milestone_its_ratio_holds() -> None:
    assert share_at({5: 0.3, 9: 0.1}, 0, "linear") == 0.3


@pytest.mark.parametrize("quantity", ["ratios", "energies"])
@pytest.mark.parametrize(
    ("shares", "message"),
    [({}, "expected ratios or energies"), ({-1: 0.5}, "at -1"), ({0: 0.0}, "outside"), ({0: 1.5}, "outside")],
)
def test_mistakes(quantity: str, shares: dict[int, float], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        RankSchedule(**{quantity: shares})  # type: ignore[arg-type]


def test_ratios_and_energies_are_not_both_taken() -> None:
    with pytest.raises(MergeError, match="not both"):
        RankSchedule({0: 0.5}, {0: 0.5})


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


def test_energies_give_every_matrix_a_rank_of_its_own(
    make_model: Callable[..., MergedModel], make_trainer: Callable[..., Trainer], tiny: Any
) -> None:
    model = make_model(CART(rank_ratio=1.0, scaling=1.0), stages=(Stage("layer", 4, 0.01),))
    full = model.to_bank()
    schedule, ranks = RankSchedule(energies={0: 0.5, 2: 0.9}), list[dict[str, int]]()

    class Look(Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
            ranks.append(pl_module.bank.ranks)

    trainer = make_trainer(max_steps=4, callbacks=[schedule, Look()])
    trainer.fit(model, datamodule=tiny.data(batch_size=12))
    assert ranks[0] == ranks[1] != ranks[2] == ranks[3]
    assert len(set(ranks[3].values())) > 1
    for name, rank in model.to_bank().ranks.items():
        delta = full.deltas[name]
        assert isinstance(delta, LowRank)
        energy = delta.S.double().square().sum(0)
        assert energy[:rank].sum() >= (0.9 - 1e-6) * energy.sum() > energy[: rank - 1].sum()
    assert float(trainer.progress_bar_metrics["energy"]) == pytest.approx(0.9)
    shown = float(trainer.progress_bar_metrics["rank"])
    assert shown == pytest.approx(sum(ranks[3].values()) / len(ranks[3]))
    # What a checkpoint holds puts a model of the same bank to the same ranks.
    saved: dict[str, Any] = {}
    model.on_save_checkpoint(saved)
    other = MergedModel(full, model.network)
    other.on_load_checkpoint(saved)
    assert other.bank.ranks == ranks[3]
    # Checkpoints from before there were such schedules go on as they were.
    del saved["lit_merge"]["energy"]
    other.on_load_checkpoint(saved)
    assert other.bank.ranks == full.ranks


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([RankSchedule({0: 0.5}), RankSchedule({0: 0.25})], "more than one RankSchedule"),
        ([CollapseGuard(), CollapseGuard(restore=False)], "more than one CollapseGuard"),
        ([RankSchedule({0: 0.5, 7: 0.25})], "step 7, which is never reached: the fit ends after 6"),
        ([RankSchedule({0: 0.5, 7: 0.25}, unit="epoch")], "epoch 7, which is never reached: the fit ends after 2"),
        ([CompressionExport("small"), CompressionExport("small", 0.5)], "two CompressionExports write to small"),
    ],
)
def test_what_contradicts_itself_is_refused_before_a_step(
    callbacks: list[Callback],
    message: str,
    make_model: Callable[..., MergedModel],
    make_trainer: Callable[..., Trainer],
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model()
    trainer = make_trainer(max_steps=6, max_epochs=2, callbacks=callbacks)
    with pytest.raises(MergeError, match=message):
        trainer.fit(model, datamodule=tiny.data())
    assert trainer.global_step == 0
    assert not list(tmp_path.iterdir())
