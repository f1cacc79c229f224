"""Fits of coefficients of directions and of a shared correction."""

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file

from lit_merge import (
    CART,
    AdaRank,
    Correction,
    Experts,
    ImageAugmentation,
    MergedModel,
    MergeError,
    RankSchedule,
    Stage,
    TaskArithmetic,
    TaskBank,
    build_bank,
)
from lit_merge.adaptation import teachers
from lit_merge.adaptation.run_files import coefficients_csv
from lit_merge.adaptation.stages import rates_at
from lit_merge.adaptation.step import adaptation_step, compared
from lit_merge.adaptation.trainer import Trainer
from lit_merge.bank.learnt import relative_size
from lit_merge.networks.heads.classifiers import Encoded
from lit_merge.objectives import ExpertAgreement, divergence
from lit_merge.report.coefficient_figure import coefficient_figure, display_order
from lit_merge.report.report import describe

Make = Callable[..., MergedModel]
MakeTrainer = Callable[..., Trainer]
STAGES = (Stage("tied", 3, 0.05), Stage("direction", 5, 0.05, relative=True, decay="cosine"))
WHOLE: dict[str, Any] = {"stages": STAGES, "correction": Correction(2, 0.01), "objective": ExpertAgreement()}


def fit(model: MergedModel, make_trainer: MakeTrainer, data: Any, **options: Any) -> MergedModel:
    make_trainer(**{"max_steps": model.total_steps} | options).fit(model, datamodule=data)
    return model


def test_the_bank_merges_to_what_the_module_has_learnt(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    model = fit(make_model(**WHOLE), make_trainer, tiny.data())
    bank = model.to_bank()
    values = torch.cat([value.flatten() for value in bank.directions.values()])
    assert values.std() > 0.01
    assert {key.partition("/")[0] for key in bank.correction} == {"A", "B", "correction"}
    assert any(bank.correction[key].any() for key in bank.correction if key.startswith("A/"))
    with torch.no_grad():
        learnt = model.merged_weights()
    bank.save(tmp_path / "bank")
    loaded = TaskBank.load(tmp_path / "bank")
    for one in (bank, loaded):
        for name, value in one.merge(naming="canonical").items():
            assert torch.equal(value, learnt[name])
    # A coefficient of a weight is the mean of those of its directions.
    for i, name in enumerate(bank.layers):
        if name in bank.directions:
            torch.testing.assert_close(bank.coefficients[:, i], bank.directions[name].mean(1))
    # Another fit goes on from there.
    again = MergedModel(loaded, tiny.encoder(), stages=[Stage("direction", 2)], correction=Correction(2))
    with torch.no_grad():
        for name, value in again.merged_weights().items():
            assert torch.equal(value, learnt[name])
    # One that does not learn the correction keeps it.
    layers = MergedModel(loaded, tiny.encoder(), stages=[Stage("layer", 2)])
    with torch.no_grad():
        for name, value in layers.merged_weights().items():
            torch.testing.assert_close(value, learnt[name])
    assert layers.to_bank().correction.keys() == bank.correction.keys()


def test_a_resumed_fit_ends_at_the_same_bits(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, tmp_path: Path
) -> None:
    options = WHOLE | {"ranks": AdaRank(0.25, 0.01)}
    whole = fit(make_model(**options), make_trainer, tiny.data())
    go_on = {"datamodule": tiny.data(), "ckpt_path": tmp_path / "stopped.ckpt", "weights_only": True}
    for stop in (2, 5):
        trainer = make_trainer(max_steps=stop)
        trainer.fit(make_model(**options), datamodule=tiny.data())
        trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        model = make_model(**options)
        make_trainer(max_steps=8).fit(model, **go_on)
        for name, value in whole.learnt_state().items():
            assert torch.equal(value, model.learnt_state()[name]), name
    other = make_model(stages=STAGES, ranks=AdaRank(0.25, 0.01))
    with pytest.raises(MergeError, match="another correction"):
        make_trainer(max_steps=8).fit(other, **go_on)
    other = make_model(**options | {"stages": [Stage("layer", 8)]})
    with pytest.raises(MergeError, match=r"other stages: coefficients\."):
        make_trainer(max_steps=8).fit(other, **go_on)


def test_a_direction_that_sleeps_keeps_its_coefficient(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            values = pl_module.coefficients.by_direction(pl_module.coefficients.values().detach())
            seen.append({name: value.clone() for name, value in values.items()})

    model = make_model(stages=[Stage("direction", 9, 0.05)])
    fit(model, make_trainer, tiny.data(), callbacks=[RankSchedule({0: 0.5, 3: 0.1, 6: 0.5}), Watch()])
    whole, cut = model.bank.ranks, build_bank(tiny.experts, method=CART(0.1)).ranks
    name = max(whole, key=lambda one: whole[one] - cut[one])
    before, asleep, after = (seen[step][name][:, cut[name] :] for step in (2, 5, 8))
    assert torch.equal(before, asleep)
    assert (after != asleep).all()
    assert (seen[2][name] != seen[5][name])[:, : cut[name]].all()


def test_rates_of_stages() -> None:
    assert rates_at(STAGES, 0, [0.01]) == [0.05, 0.0]
    assert rates_at(STAGES, 3, [0.01]) == [0.05, 0.01]
    middle = (Stage("layer", 4, 0.2, decay="cosine"),)
    assert rates_at(middle, 2, []) == [pytest.approx(0.1)]
    assert rates_at(middle, 9, []) == [pytest.approx(0.0)]


def test_experts_are_asked_once(
    make_trainer: MakeTrainer, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts, network = Experts(tiny.experts, tiny.base), tiny.encoder()
    bank = build_bank(experts, method=CART(0.5))
    data = tiny.data()
    steps = -(-max(map(len, data.unlabelled().values())) // data.batch_size)
    asked: list[int] = []

    class Counting(MergedModel):
        def expert_logits(self, task: str, inputs: torch.Tensor) -> torch.Tensor:
            asked.append(len(inputs))
            return super().expert_logits(task, inputs)

    def make() -> MergedModel:
        model = Counting(bank, network, ExpertAgreement(2.0), [Stage("layer", steps, 0.01)], experts=experts)
        model.teachers_file = tmp_path / "teachers.safetensors"
        return model

    first = fit(make(), make_trainer, data)
    assert sum(asked) == sum(map(len, data.unlabelled().values()))
    fresh = tiny.data()
    known = teachers.Teachers(fresh, make().expert_logits, range(steps), torch.device("cpu"), "")
    for task, logits in load_file(tmp_path / "teachers.safetensors").items():
        own = {name: experts.checkpoints[task].read(name) for name in experts.shapes}
        for step, batch in enumerate(fresh.train_dataloader()):
            with torch.no_grad():
                torch.testing.assert_close(known.at(step)[task], network(own, {task: batch[task]})[task])
        assert torch.equal(known.logits[task], logits)
    asked.clear()
    again = fit(make(), make_trainer, tiny.data())
    assert not asked
    assert torch.equal(first.coefficients(), again.coefficients())
    (tmp_path / "teachers.safetensors").unlink()
    # Only of what will be drawn, in blocks of the same size however long the fit is.
    monkeypatch.setattr(teachers, "BATCH", 2 * data.batch_size)
    fit(make(), make_trainer, tiny.data(), max_steps=1)
    assert asked == [2 * data.batch_size] * len(tiny.tasks)
    assert {len(kept) for kept in load_file(tmp_path / "teachers.safetensors").values()} == {2 * data.batch_size}
    logits = load_file(tmp_path / "teachers.safetensors")
    save_file(logits, tmp_path / "teachers.safetensors", {"fingerprint": "of others"})
    with pytest.raises(MergeError, match="other experts"):
        fit(make(), make_trainer, tiny.data())


@pytest.mark.parametrize("room", [0, 2**28])
def test_experts_stay_in_memory_where_there_is_room(
    room: int, make_trainer: MakeTrainer, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Augmented inputs are asked about at every step."""
    experts, reads = Experts(tiny.experts, tiny.base), list[str]()
    for checkpoint in experts.checkpoints.values():
        read = checkpoint.read
        monkeypatch.setattr(checkpoint, "read", lambda name, read=read: (reads.append(name), read(name))[1])
    bank = build_bank(tiny.experts, method=CART(0.5))
    model = MergedModel(bank, tiny.encoder(), ExpertAgreement(), [Stage("layer", 3, 0.01)], experts=experts)
    monkeypatch.setattr("lit_merge.adaptation.taught_module.SMALL", room)
    fit(model, make_trainer, tiny.data(augment=ImageAugmentation()))
    assert len(reads) == len(experts.shapes) * len(tiny.tasks) * (1 if room else 3)
    assert not model._held


def test_teachers_are_what_the_bank_was_made_of(make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({name: value + 1e-3 for name, value in load_file(tiny.experts["beta"]).items()}, other)
    build_bank(tiny.experts, tiny.base, method=CART(0.5)).save(tmp_path / "bank")
    bank, mixed = TaskBank.load(tmp_path / "bank"), tiny.experts | {"beta": str(other)}
    stages = [Stage("layer", 1, 0.01)]
    for experts in (mixed, {task: load_file(file) for task, file in mixed.items()}, None):
        opened = None if experts is None else Experts(experts, tiny.base)
        model = MergedModel(bank, tiny.encoder(), ExpertAgreement(), stages, experts=opened)
        if experts is mixed:
            with pytest.raises(MergeError, match=r"other.safetensors is not the expert of beta .*\(beta.safetensors\)"):
                fit(model, make_trainer, tiny.data())
        else:  # values in memory have no file to compare
            fit(model, make_trainer, tiny.data())


def test_features_are_compared_without_heads(make_trainer: MakeTrainer, tiny: Any, tmp_path: Path) -> None:
    experts, network = Experts(tiny.experts, tiny.base), tiny.encoder()
    bank, data = build_bank(experts, method=CART(0.5)), tiny.data()
    images = next(iter(data.train_dataloader()))
    steps = -(-max(map(len, data.unlabelled().values())) // data.batch_size)

    def make(heads: float, microbatch: Any = "all") -> MergedModel:
        other = tiny.encoder()
        for value in other.heads.parameters():
            value.data *= heads
        stages = [Stage("layer", steps, 0.01), Stage("layer", 2, 0.01, objective=ExpertAgreement())]
        return MergedModel(bank, other, ExpertAgreement(of="features"), stages, microbatch=microbatch, experts=experts)

    def features(weights: Any, task: str) -> np.ndarray:
        with torch.no_grad():
            found = network.holding(weights, lambda: network.encode(images[task])).double().numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    model = make(1.0)
    step = adaptation_step(model.network, model.merged_weights(), images, model.objective, model.expert_features)
    for task in tiny.tasks:
        own = {name: experts.checkpoints[task].read(name) for name in experts.shapes}
        ours, theirs = (features(weights, task) for weights in (bank.merge(naming="canonical"), own))
        assert step.losses[task].item() == pytest.approx((1 - (ours * theirs).sum(1)).mean(), rel=1e-4)
        assert step.predictions[task].shape == images[task].shape[:1]
    ends = []
    for heads, microbatch in ((1.0, "all"), (-1.0, "all"), (1.0, "task")):
        model = make(heads, microbatch)
        model.teachers_file = tmp_path / f"{heads}{microbatch}" / "teachers.safetensors"
        model.teachers_file.parent.mkdir()
        ends.append(fit(model, make_trainer, data, max_steps=steps).coefficients().detach())
        # The second stage does not come.
        assert [path.name for path in model.teachers_file.parent.iterdir()] == ["teachers-features.safetensors"]
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-4, atol=1e-5)
    assert (ends[0] - 1).abs().max() > 0.01
    model = make(1.0)
    model.teachers_file = tmp_path / "teachers.safetensors"
    fit(model, make_trainer, data)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "teachers-features.safetensors",
        "teachers.safetensors",
    ]
    with pytest.raises(MergeError, match="features have no temperature"):
        ExpertAgreement(2.0, "features")
    with pytest.raises(MergeError, match="no features"):
        compared(Encoded(None, torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)))


def test_temperature() -> None:
    g = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(5, 4, generator=g, dtype=torch.float64) for _ in range(2))
    p, q = ((z / 3).softmax(-1) for z in (theirs, ours))
    expected = 9 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(divergence(ours, theirs, 3.0), expected)
    torch.testing.assert_close(ExpertAgreement(3.0)(ours, theirs), expected)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(MergeError, match="temperature"):
            ExpertAgreement(wrong)


def test_every_weight_can_be_learnt(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = fit(make_model(stages=[Stage("layer", 2)], correction=Correction(None, 0.01)), make_trainer, tiny.data())
    bank = model.to_bank()
    assert bank.correction.keys() == {f"correction/{name}" for name in bank.origin}
    for key, value in bank.correction.items():
        assert value.shape == bank.origin[key.partition("/")[2]].shape
        assert 0 < value.abs().max() <= 0.021  # two steps of Adam


def test_bad_input(make_model: Make, tiny: Any) -> None:
    strange = make_model()
    strange.network.learnable = frozenset({"of.another.name"})
    with pytest.raises(
        MergeError, match="OpenClipImageEncoder has no parameter that the bank calls so, as class_embed"
    ):
        MergedModel(strange.bank, strange.network, correction=Correction(None))
    with pytest.raises(MergeError, match="TaskArithmetic has no low-rank deltas, and so no directions"):
        make_model(TaskArithmetic(0.3), stages=[Stage("direction")])
    for rank in (0, -1):
        with pytest.raises(MergeError, match=f"rank={rank}: expected at least 1"):
            Correction(rank)
    with pytest.raises(MergeError, match="lr=0"):
        Correction(4, 0.0)
    with pytest.raises(MergeError, match="rank=1000: expected less than"):
        make_model(correction=Correction(1000))
    bank = make_model(correction=Correction(2)).to_bank()
    with pytest.raises(MergeError, match="is of another rank"):
        MergedModel(bank, tiny.encoder(), correction=Correction(3))
    assert replace(bank, learnt={}).fingerprint == bank.fingerprint


def test_a_stage_has_an_objective_of_its_own(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    own = Stage("layer", 2, 0.01, objective=ExpertAgreement(2.0))
    model = make_model(stages=[Stage("layer", 2, 0.01), own])
    assert model.options.plan()["stages"][1]["objective"] == {
        "class": "ExpertAgreement",
        "temperature": 2.0,
        "of": "predictions",
    }
    seen: list[str] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            seen.append(type(pl_module.objective).__name__)

    fit(model, make_trainer, tiny.data(), callbacks=[Watch()])
    assert seen == ["Entropy"] * 2 + ["ExpertAgreement"] * 2
    entropy = fit(make_model(stages=[Stage("layer", 4, 0.01)]), make_trainer, tiny.data())
    assert not torch.equal(entropy.coefficients(), model.coefficients())
    with pytest.raises(MergeError, match="ExpertAgreement asks every expert"):
        fit(make_model(stages=[own]), make_trainer, tiny.data(mixed=True))


def test_a_stage_that_asks_nobody_draws_what_nobody_was_asked_about(
    make_model: Make, make_trainer: MakeTrainer, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [Stage("tied", 3, 0.05), Stage("layer", 1, 0.01, objective=ExpertAgreement())]
    monkeypatch.setattr(teachers, "BATCH", 1)
    data = tiny.data(batch_size=2)
    draws = [batch["alpha"] for batch in data.train_dataloader()][:4]
    assert not torch.isin(draws[0], draws[3]).all()
    asked = fit(make_model(stages=stages), make_trainer, data).coefficients()
    monkeypatch.setattr("lit_merge.adaptation.taught_module.known_beforehand", lambda data, trainer: False)
    torch.testing.assert_close(fit(make_model(stages=stages), make_trainer, data).coefficients(), asked)


def test_tables_and_figures_of_directions(make_model: Make, make_trainer: MakeTrainer, tiny: Any) -> None:
    model = make_model(**WHOLE)
    start = model.to_bank()
    bank = fit(model, make_trainer, tiny.data()).to_bank()
    lines = list(csv.DictReader(io.StringIO(coefficients_csv(start, bank))))
    assert len(lines) == len(bank.tasks) * len(bank.layers)
    for line in lines:
        values = bank.directions.get(line["weight"])
        if values is None:
            assert line["lowest"] == ""
            continue
        own = values[bank.tasks.index(line["task"])].double()
        for column, value in {"adapted": own.mean(), "lowest": own.min(), "highest": own.max()}.items():
            assert float(line[column]) == pytest.approx(value.item(), rel=1e-5)
        assert float(line["deviation"]) == pytest.approx(own.std(correction=0).item(), rel=1e-4)
    figure = coefficient_figure(bank)
    means, deviations = (axes.images[0].get_array() for axes in figure.axes if axes.images and axes.get_yticklabels())
    order = display_order(bank.layers)
    for column, i in enumerate(order):
        values = bank.directions.get(bank.layers[i])
        wanted = torch.zeros(3) if values is None else values.std(1, correction=0)
        torch.testing.assert_close(torch.from_numpy(deviations[:, column]), wanted)
        torch.testing.assert_close(torch.from_numpy(means[:, column]), bank.coefficients[:, i])
    moved = {name: value.double() for name, value in bank.merge(0.0, torch.float64, naming="canonical").items()}
    origin = {name: value.double() for name, value in bank.origin.items()}
    size = sum((moved[n] - origin[n]).square().sum() for n in origin) / sum(v.square().sum() for v in origin.values())
    assert relative_size(bank.learnt, bank.origin) == pytest.approx(size.sqrt().item(), rel=1e-4)
    assert "a coefficient for every direction" in describe(bank)
    assert f"{100 * size.sqrt().item():.2g} % of the origin's norm" in describe(bank)
