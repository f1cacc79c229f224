"""MergedModel: what a step computes, what it sees, and what a checkpoint holds."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call

from lit_merge import (
    CART,
    TSVM,
    IsoC,
    LowRank,
    MergedModel,
    MergeError,
    OpenClipImageEncoder,
    Stage,
    TaskArithmetic,
    TaskBank,
    WeightAveraging,
)
from lit_merge.adaptation.trainer import Trainer
from lit_merge.objectives import entropy

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]
STAGES = (Stage("tied", 3, 0.05), Stage("layer", 4, 0.01))


def adapt(model: MergedModel, make_trainer: MakeTrainer, data: Any, **options: Any) -> Tensor:
    make_trainer(max_steps=model.total_steps, **options).fit(model, datamodule=data)
    return model.coefficients().detach().clone()


@pytest.mark.parametrize("method", [CART(rank_ratio=0.5, scaling=1.0), TaskArithmetic(0.3)], ids=["cart", "arithmetic"])
def test_gradient_of_a_step_is_that_of_the_dense_sum(method: Any, make_model: Make, tiny: Any) -> None:
    model = make_model(method, stages=[Stage("layer")])
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
    seen: list[tuple[str, float, Tensor]] = []
    counts: list[int] = []
    ends: list[Tensor] = []

    class Watch(Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            seen.append((pl_module.coefficients.granularity, lr, pl_module.coefficients().detach()))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            (state,) = trainer.optimizers[0].state.values()
            counts.append(int(state["step"]))
            ends.append(pl_module.coefficients().detach())

    model = make_model(stages=STAGES)
    adapt(model, make_trainer, tiny.data(), callbacks=[Watch()])
    assert [(granularity, lr) for granularity, lr, _ in seen] == [("tied", 0.05)] * 3 + [("layer", 0.01)] * 4
    assert all(values.unique().numel() == 1 for *_, values in seen[:4])
    assert seen[-1][2].unique().numel() > 10
    # Adam starts afresh with a stage, the values do not: every step begins where the last one ended.
    assert counts == [1, 2, 3, 1, 2, 3, 4]
    assert all(torch.equal(end, following) for end, (*_, following) in zip(ends, seen[1:], strict=False))
    assert model.total_steps == 7


def test_the_last_stage_goes_on_for_as_long_as_the_trainer(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any
) -> None:
    short, long = (make_model(stages=(Stage("tied", 3, 0.05), Stage("layer", steps, 0.01))) for steps in (1, 4))
    for model in (short, long):
        make_trainer(max_steps=7).fit(model, datamodule=tiny.data())
    assert torch.equal(short.coefficients(), long.coefficients())


@pytest.mark.parametrize("method", [TSVM(), IsoC()], ids=["tsvm", "one shared delta"])
def test_any_method_is_adapted(method: Any, make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = make_model(method, stages=STAGES)
    start = model.coefficients().detach().clone()
    found = adapt(model, make_trainer, tiny.data())
    assert found.shape == start.shape
    assert (found != start).all()
    assert torch.equal(model.to_bank().coefficients, found)


def test_watching_the_validation_data_changes_nothing(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    blind, watched = make_model(stages=STAGES), make_model(stages=STAGES)
    expected = adapt(blind, make_trainer, tiny.data())
    options = {"limit_val_batches": 1.0, "val_check_interval": 2, "num_sanity_val_steps": 2}
    trainer = make_trainer(max_steps=watched.total_steps, **options)
    trainer.fit(watched, datamodule=tiny.data())
    assert torch.equal(watched.coefficients(), expected)
    assert {task: score.images for task, score in watched.scores.items()} == {"alpha": 9, "beta": 7, "gamma": 8}
    assert 0 < trainer.callback_metrics["validation/accuracy"] <= 1


def test_validation_after_a_step_is_of_the_weights_reached(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any
) -> None:
    model = make_model(stages=(Stage("tied", 5, 0.5),))
    make_trainer().validate(model, datamodule=tiny.data(), verbose=False)
    before = model.scores
    adapt(model, make_trainer, tiny.data())
    make_trainer(limit_val_batches=1.0).validate(model, datamodule=tiny.data(), verbose=False)
    fresh = MergedModel(model.to_bank(), tiny.encoder())
    make_trainer(limit_val_batches=1.0).validate(fresh, datamodule=tiny.data(), verbose=False)
    assert model.scores == fresh.scores
    assert model.scores != before


def test_mixed_precision_merges_in_full_precision(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = make_model(dtype=torch.float16)
    full = model.merged_weights()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.merged_weights()
    assert all(torch.equal(value, full[name]) and value.dtype == torch.float32 for name, value in mixed.items())
    found = adapt(make_model(stages=STAGES), make_trainer, tiny.data(), precision="bf16-mixed")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, adapt(make_model(stages=STAGES), make_trainer, tiny.data()), atol=0.05, rtol=0)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_coefficients_in_half_precision_are_refused(
    precision: str, make_model: Make, make_trainer: MakeTrainer, tiny: Any
) -> None:
    """A step of 1e-3 on a coefficient of 1 is less than bfloat16 can tell apart."""
    with pytest.raises(MergeError, match=precision.replace("true", "mixed")):
        make_trainer(max_steps=1, precision=precision).fit(make_model(), datamodule=tiny.data())


def test_same_seed_same_bits(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    first, second = (adapt(make_model(stages=STAGES), make_trainer, tiny.data(seed=3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, adapt(make_model(stages=STAGES), make_trainer, tiny.data(seed=4)))


def test_a_resumed_fit_ends_at_the_same_bits(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    """In mid-epoch (9 steps are one) and at its end, before and after the change of stages."""
    stages = (Stage("tied", 7, 0.05), Stage("layer", 8, 0.01))
    whole = adapt(make_model(stages=stages), make_trainer, tiny.data())
    fingerprint = make_model().to_bank().fingerprint
    for stop in (3, 7, 9, 12):
        trainer = make_trainer(max_steps=stop)
        trainer.fit(make_model(stages=stages), datamodule=tiny.data())
        path = tmp_path / f"{stop}.ckpt"
        trainer.save_checkpoint(path)
        assert path.stat().st_size < 64_000
        held = torch.load(path, weights_only=True)
        assert set(held["state_dict"]) == {f"coefficients.{part}" for part in ("offset", "anchor", "group", "unit")}
        assert held["lit_merge"]["fingerprint"] == fingerprint
        assert held["lit_merge"].pop("options")["stages"][0] == {"class": "Stage"} | {
            name: value for name, value in asdict(stages[0]).items() if value is not None
        }
        if stop == 7:  # checkpoints of earlier versions hold no options
            torch.save(held, path)
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
    model.set_rank(0.1)
    assert set(model.to_bank().ranks.values()) == {3}
    low = model.merged_weights()
    expected = model._frame.truncate(0.1).merge(dtype=torch.float32)
    assert all(torch.equal(value, expected[name]) for name, value in low.items())
    assert any(not torch.equal(value, full[name]) for name, value in low.items())
    with pytest.raises(MergeError, match="outside"):
        model.set_rank(0.0)


def test_a_task_without_a_head(make_model: Make, tiny: Any, tmp_path: Path) -> None:
    heads = load_file(tiny.heads)
    del heads["beta"]
    save_file(heads, tmp_path / "heads.safetensors")
    bank = make_model().to_bank()
    with pytest.raises(MergeError, match="no head for task 'beta'; there are heads for alpha, gamma") as error:
        MergedModel(bank, OpenClipImageEncoder(tiny.network, str(tmp_path / "heads.safetensors")))
    assert error.value.task == "beta"


def test_another_network_names_the_weight(make_model: Make, tiny: Any, tmp_path: Path) -> None:
    config = json.loads(Path(tiny.network).read_text())
    config["vision_cfg"]["layers"] = 3
    (tmp_path / "deeper.json").write_text(json.dumps(config))
    bank = make_model().to_bank()
    with pytest.raises(MergeError, match=r"resblocks\.2\.") as error:
        MergedModel(bank, OpenClipImageEncoder(str(tmp_path / "deeper.json"), tiny.heads))
    assert error.value.weight is not None
    assert error.value.weight.startswith("transformer.resblocks.2.")
    config["vision_cfg"] |= {"layers": 2, "mlp_ratio": 3.0}
    (tmp_path / "wider.json").write_text(json.dumps(config))
    with pytest.raises(MergeError, match=r"\[96, 32\] in the network and \[64, 32\] in the experts") as error:
        MergedModel(bank, OpenClipImageEncoder(str(tmp_path / "wider.json"), tiny.heads))
    assert error.value.weight == "transformer.resblocks.0.mlp.c_fc.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_bank_gives_the_same_logits(
    dtype: torch.dtype, make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    model = make_model(dtype=dtype, stages=STAGES)
    adapt(model, make_trainer, tiny.data())
    model.to_bank().save(tmp_path / "bank")
    again = MergedModel(TaskBank.load(tmp_path / "bank"), tiny.encoder())
    batch = next(iter(tiny.data(protocol="transductive").train_dataloader()))
    with torch.no_grad():
        expected, found = model(batch), again(batch)
    assert all(torch.equal(found[task], logits) for task, logits in expected.items())


def test_predictions_are_the_most_probable_classes(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = make_model()
    predictions = make_trainer().predict(model, datamodule=tiny.data())
    assert [batch["task"] for batch in predictions] == ["alpha"] * 3 + ["beta"] * 2 + ["gamma"] * 3
    images, _ = tiny.data().labelled("test")["gamma"]
    with torch.no_grad():
        logits = model({"gamma": images.read(range(10))})["gamma"]
    first = next(batch for batch in predictions if batch["task"] == "gamma")
    assert torch.equal(first["classes"], logits.argsort(-1, descending=True))
    torch.testing.assert_close(first["probabilities"].sum(1), torch.ones(10))
    assert first["indices"].tolist() == list(range(10))
    assert predictions[0]["classes"].shape == (10, 3)


@pytest.mark.parametrize("stages", [(), (Stage("tied", 0),), (Stage("tied", 1, 0.0),)])
def test_bad_stages(stages: tuple[Stage, ...], make_model: Make) -> None:
    with pytest.raises(MergeError, match="stages"):
        make_model(stages=stages)
