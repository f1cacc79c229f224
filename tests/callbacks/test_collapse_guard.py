"""The guard against collapse: provoked, on healthy fits, and across a resume."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer as LightningTrainer

from lit_merge import CART, CollapseGuard, MergedModel, MergeError, MergeWarning, Stage, Suite, build_bank
from lit_merge.data.streams import ImageSource, ImageTensor
from lit_merge.networks import OpenClipImageEncoder

TASKS = ["mnist", "latin", "thai"]
Fit = Callable[..., tuple[MergedModel, CollapseGuard, list[str]]]


class OneClass(Suite):
    """A stream that shows one class of every task for a long time; the guard sees what is adapted on."""

    def unlabelled(self) -> Mapping[str, ImageSource]:
        found: dict[str, ImageSource] = {}
        for task, (source, labels) in self.labelled("validation").items():
            assert labels is not None
            found[task] = ImageTensor(source.read((labels == 0).nonzero().flatten().tolist()))
        return found


@pytest.fixture(scope="module")
def fit() -> Fit:
    """A fit of three experts of the built-in suite, real ones: their merge is worth guarding."""
    experts = {task: f"zoo:8/experts/{task}.safetensors" for task in TASKS}
    bank = build_bank(experts, method=CART(0.16, 1.0))
    network = OpenClipImageEncoder("zoo:8/network.json", "zoo:8/heads.safetensors")

    def run(
        stages: list[Stage], data: Any = None, state: Any = None, **options: Any
    ) -> tuple[MergedModel, CollapseGuard, list[str]]:
        guard = CollapseGuard(**{"every_n_steps": 4, "images": 32} | options)
        if state is not None:
            guard.load_state_dict(state)
        model = MergedModel(bank, network, stages=stages)
        trainer = LightningTrainer(
            accelerator="cpu",
            max_steps=model.total_steps,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[guard],
        )
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", MergeWarning)
            trainer.fit(model, datamodule=data or Suite("zoo:8", tasks=TASKS, batch_size=8))
        return model, guard, [str(one.message) for one in told if issubclass(one.category, MergeWarning)]

    return run


def test_a_healthy_fit_is_left_alone(fit: Fit) -> None:
    model, guard, told = fit([Stage("tied", 8, 0.1), Stage("layer", 4, 1e-3)])
    assert told == guard.told == []
    assert [look["step"] for look in guard.looks] == [0, 4, 8, 12]
    assert sum(guard.looks[-1]["entropy"].values()) < sum(guard.looks[0]["entropy"].values())
    assert model.coefficients().mean() > 1.3
    assert model.trainer.callback_metrics["agreement"].item() == pytest.approx(guard.looks[-1]["mean_agreement"])


@pytest.mark.parametrize("restore", [True, False])
def test_a_rate_that_is_far_too_high(restore: bool, fit: Fit) -> None:
    model, guard, told = fit([Stage("layer", 16, 2.0)], restore=restore)
    assert any("collapses" in one for one in told), guard.looks
    assert any("predicted for" in one or "predictions changed" in one for one in told)
    # What it went back to is healthy, and the fit is over; without that it goes on, and is told about it.
    if restore:
        assert len(told) == 2
        step = int(told[-1].rpartition("step ")[2].rstrip("."))
        assert [look["step"] for look in guard.looks if look["healthy"]][-1] == step
        assert model.global_step < 16
        assert guard.state_dict()["stopped"]
        assert (model.coefficients() - 1).abs().max() < 2.0 * (step + 1)
    else:
        assert model.global_step == 16
        assert not any("back to" in one for one in told)


def test_a_fit_that_goes_on_for_too_long_ends_at_its_best_look(fit: Fit) -> None:
    model, guard, told = fit([Stage("layer", 12, 1.0)], balance=0.0, churn=1.0)
    best = max(guard.looks, key=lambda look: look["mean_agreement"])
    assert best["mean_agreement"] - guard.looks[-1]["mean_agreement"] > guard.margin
    assert f"back to the coefficients of step {best['step']}" in told
    # A coefficient moves by 1 a step at most.
    assert (model.coefficients() - 1).abs().max() <= best["step"] + 1e-3


def test_a_stream_of_one_class(fit: Fit) -> None:
    data = OneClass("zoo:8", tasks=TASKS, batch_size=8)
    _, guard, told = fit([Stage("tied", 8, 0.05), Stage("layer", 16, 0.3)], data)
    assert told, [(look["balance"], look["churn"], look["mean_agreement"]) for look in guard.looks]


def test_state_survives(fit: Fit) -> None:
    _, guard, _ = fit([Stage("tied", 8, 0.05)])
    again = CollapseGuard(every_n_steps=4, images=32)
    again.load_state_dict(guard.state_dict())
    assert again.state_key == guard.state_key
    assert again.looks == guard.looks
    assert again._best() == guard._best()
    assert torch.equal(
        again._kept["best"]["state"]["coefficients.offset"], guard._kept["best"]["state"]["coefficients.offset"]
    )


def test_a_fit_that_was_stopped_stays_stopped(fit: Fit) -> None:
    _, guard, _ = fit([Stage("layer", 16, 2.0)])
    again, _, _ = fit([Stage("layer", 16, 2.0)], state=guard.state_dict())
    assert again.global_step == 0


def test_bad_options() -> None:
    for options in ({"every_n_steps": -1}, {"images": 0}, {"balance": 1.5}, {"margin": -0.1}):
        with pytest.raises(MergeError, match="CollapseGuard: "):
            CollapseGuard(**options)
