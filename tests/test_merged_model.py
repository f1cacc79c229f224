"""MergedModel: what a step computes, what it sees, and what a checkpoint holds."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from lit_merge import CART, LowRank, MergedModel, MergeError, Stage, TaskArithmetic, WeightAveraging
from lit_merge.objectives import entropy
from lit_merge.trainer import Trainer

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]
STAGES = (Stage("tied", 3, 0.05), Stage("layer", 4, 0.01))


def adapt(model: MergedModel, make_trainer: MakeTrainer, data: Any, **options: Any) -> Tensor:
    make_trainer(max_steps=model.total_steps, **options).fit(model, datamodule=data)
    return model.coefficients().detach().clone()


@pytest.mark.parametrize("method", [CART(rank_ratio=0.5, scaling=1.0), TaskArithmetic(0.3)], ids=["cart", "arithmetic"])
def test_gradient_of_a_step_is_that_of_the_dense_sum(method: Any, make_model: Make, tiny: Any) -> None:
    model = make_model(method)
    batch = next(iter(tiny.data().train_dataloader()))
    loss = torch.stack([model.objective(logits) for logits in model(batch).values()]).mean()
    loss.backward()
    assert model.coefficients.offset.grad is not None

    bank, network = model.to_bank(), model.network
    plain = bank.coefficients.double().requires_grad_()
    weights = {name: value.double() for name, value in bank.origin.items()}
    for i, name in enumerate(bank.layers):
        delta = bank.deltas[name]
        dense = (delta.to_dense() if isinstance(delta, LowRank) else delta).double()
        weights[name] = weights[name] + torch.einsum("t,t...->...", plain[:, i], dense)
    losses = []
    for task, images in batch.items():
        encoder = network.encoder.double()
        features = functional_call(encoder, weights, (network.prepare(images).double(),))
        features = features / features.norm(dim=-1, keepdim=True)
        row = dict(zip(network.heads.tasks, network.heads.rows, strict=True))[task].double()
        losses.append(entropy(network.heads.logit_scale * features @ row.T).mean())
    torch.stack(losses).mean().backward()
    assert plain.grad is not None
    torch.testing.assert_close(model.coefficients.offset.grad.double(), plain.grad.flatten(), rtol=2e-3, atol=1e-6)


def test_the_merge_is_built_once_per_step(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = []
    original = MergedModel.merged_weights
    monkeypatch.setattr(MergedModel, "merged_weights", lambda self: merges.append(1) or original(self))
    adapt(make_model(stages=(Stage("tied", 5),)), make_trainer, tiny.data())
    assert len(merges) == 5


@pytest.mark.parametrize("protocol", ["inductive", "transductive"])
def test_adaptation_never_sees_a_label(
    protocol: str, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    """The stream holds images only, and labels that are wrong, or not there at all, change not one bit."""
    for batch in tiny.data(protocol=protocol).train_dataloader():
        assert set(batch) == set(tiny.tasks)
        assert all(value.dtype == torch.uint8 and value.ndim == 3 for value in batch.values())
    found = [adapt(make_model(stages=STAGES), make_trainer, tiny.data(protocol=protocol))]
    for name in ("wrong", "absent"):
        folder = tmp_path / name
        shutil.copytree(tiny.suite, folder)
        labels = load_file(folder / "labels.safetensors")
        (folder / "labels.safetensors").unlink()
        if name == "wrong":
            save_file({key: value.flip(0) for key, value in labels.items()}, folder / "labels.safetensors")
        data = type(tiny.data())(str(folder), protocol=protocol, batch_size=4, eval_batch_size=10)
        found.append(adapt(make_model(stages=STAGES), make_trainer, data))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_entropy_falls(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = make_model(stages=(Stage("tied", 30, 0.05),))
    batch = tiny.data(batch_size=13).train_dataloader()
    before, after = [], []
    for scores in (before, after):
        with torch.no_grad():
            scores.append(sum(float(entropy(x).mean()) for x in model(next(iter(batch))).values()))
        if scores is before:
            adapt(model, make_trainer, tiny.data())
    assert after[0] < before[0]


def test_stages_change_what_is_learnt_and_go_on_from_there(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any
) -> None:
    seen = []

    class Watch(Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            seen.append((pl_module.coefficients.granularity, lr, pl_module.coefficients().detach()))

    model = make_model(stages=STAGES)
    adapt(model, make_trainer, tiny.data(), callbacks=[Watch()])
    assert [(granularity, lr) for granularity, lr, _ in seen] == [("tied", 0.05)] * 3 + [("layer", 0.01)] * 4
    assert all(values.unique().numel() == 1 for *_, values in seen[:4])
    assert seen[-1][2].unique().numel() > 10
    assert model.total_steps == 7


def test_same_seed_same_bits(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    first, second = (adapt(make_model(stages=STAGES), make_trainer, tiny.data(seed=3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, adapt(make_model(stages=STAGES), make_trainer, tiny.data(seed=4)))


@pytest.mark.parametrize("stop", [3, 7, 9, 12])
def test_a_resumed_fit_ends_at_the_same_bits(
    stop: int, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    """In mid-epoch (9 steps are one) and at its end, before and after the change of stages."""
    stages = (Stage("tied", 7, 0.05), Stage("layer", 8, 0.01))
    whole = adapt(make_model(stages=stages), make_trainer, tiny.data())
    trainer = make_trainer(max_steps=stop)
    trainer.fit(make_model(stages=stages), datamodule=tiny.data())
    path = tmp_path / "stopped.ckpt"
    trainer.save_checkpoint(path)
    assert path.stat().st_size < 64_000
    held = torch.load(path, weights_only=True)
    assert set(held["state_dict"]) == {"coefficients.offset", "coefficients.anchor", "coefficients.group"}
    model = make_model(stages=stages)
    make_trainer(max_steps=model.total_steps).fit(model, datamodule=tiny.data(), ckpt_path=path, weights_only=True)
    assert torch.equal(model.coefficients(), whole)


def test_a_checkpoint_of_another_bank_is_refused(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_model(), datamodule=tiny.data())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    other = make_model(CART(rank_ratio=0.25))
    with pytest.raises(MergeError, match="another bank"):
        make_trainer(max_steps=4).fit(other, datamodule=tiny.data(), ckpt_path=tmp_path / "one.ckpt", weights_only=True)


def test_weight_averaging_has_nothing_to_fit_but_can_be_tested(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any
) -> None:
    model = make_model(WeightAveraging())
    with pytest.raises(MergeError, match="nothing to fit"):
        make_trainer(max_steps=1).fit(model, datamodule=tiny.data())
    make_trainer().test(model, datamodule=tiny.data(), verbose=False)
    assert set(model.scores) == set(tiny.tasks)


def test_active_rank(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = make_model()
    full = model.merged_weights()
    model.set_rank_ratio(0.1)
    assert set(model.to_bank().ranks.values()) == {3}
    low = model.merged_weights()
    expected = model._frame.truncate(0.1).merge(dtype=torch.float32)
    assert all(torch.equal(value, expected[name]) for name, value in low.items())
    assert any(not torch.equal(value, full[name]) for name, value in low.items())
    with pytest.raises(MergeError, match="outside"):
        model.set_rank_ratio(0.0)


@pytest.mark.parametrize("stages", [(), (Stage("tied", 0),), (Stage("tied", 1, 0.0),)])
def test_bad_stages(stages: tuple[Stage, ...], make_model: Make) -> None:
    with pytest.raises(MergeError, match="stages"):
        make_model(stages=stages)
