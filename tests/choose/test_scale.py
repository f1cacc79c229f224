"""Choosing a scale by entropy: the search, what the probe reads, the warnings, and the way through the command line."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lit_merge import CART, ESM, MergeError, MergeWarning, RegMean, TaskArithmetic, WeightAveraging, build_bank
from lit_merge.choose.sample import Probe, balance
from lit_merge.choose.scale import FEW_INPUTS, FEW_TASKS, choose_scaling, minimise
from lit_merge.cli.lightning_cli import MergeRecipe
from lit_merge.merge.scaling import at_scaling


@given(st.floats(0.05, 30), st.sampled_from([0.3, 1.0, 2.0]), st.sampled_from([1, 2, 4]))
@settings(max_examples=40, deadline=None)
def test_finds_the_minimum_of_a_valley(place: float, start: float, power: int) -> None:
    if not start / 25 < place < start * 25:
        return
    choice = minimise(lambda x: abs(math.log(x / place)) ** power, start)
    assert choice.inside
    assert abs(math.log(choice.scaling / place)) < 0.06
    assert len(choice.curve) <= 20
    assert list(choice.curve) == sorted(choice.curve)


def test_no_minimum_is_said() -> None:
    assert not minimise(lambda x: -x, 1.0).inside
    assert not minimise(lambda x: x, 1.0).inside


@pytest.fixture
def probe(tiny: Any) -> Probe:
    return Probe.draw(tiny.encoder(), tiny.data(), 10)


def experts_of(tiny: Any) -> Callable[[str], dict[str, torch.Tensor]]:
    from safetensors.torch import load_file

    return lambda task: load_file(tiny.experts[task])


def test_what_a_probe_reads(tiny: Any) -> None:
    network, data = tiny.encoder(), tiny.data()
    probe = Probe.labelled(network, data, "validation")
    probe.ask_experts(experts_of(tiny))
    weights = build_bank(tiny.experts, method=CART(0.5, 1.0)).merge()
    seen = probe.read(weights)
    for task, (source, labels) in data.labelled("validation").items():
        logits = network(weights, {task: source.read(range(len(source)))})[task]
        theirs = network(experts_of(tiny)(task), {task: source.read(range(len(source)))})[task].argmax(-1)
        p = logits.softmax(-1)
        assert seen.accuracy[task] == pytest.approx((logits.argmax(-1) == labels).double().mean().item())
        assert seen.agreement[task] == pytest.approx((logits.argmax(-1) == theirs).double().mean().item())
        assert seen.entropy[task] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), abs=1e-5)
    assert seen.mean_entropy == pytest.approx(sum(seen.entropy.values()) / 3)


def test_draws_are_repeatable_and_no_larger_than_the_data(tiny: Any) -> None:
    first, again = (Probe.draw(tiny.encoder(), tiny.data(), 15) for _ in range(2))
    for task, images in first.inputs.items():
        assert torch.equal(images, again.inputs[task])
    assert {task: len(images) for task, images in first.inputs.items()} == {"alpha": 15, "beta": 15, "gamma": 13}
    with pytest.raises(MergeError, match="images=0"):
        Probe.draw(tiny.encoder(), tiny.data(), 0)


def test_balance() -> None:
    assert balance(F.one_hot(torch.arange(4)).float() * 50) == pytest.approx(1)
    assert balance(torch.tensor([[50.0, 0, 0, 0]] * 3)) == pytest.approx(0, abs=1e-6)
    assert balance(torch.zeros(2, 1)) == 1.0


@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
def test_the_chosen_scale_is_where_entropy_is_least(tiny: Any, probe: Probe) -> None:
    method = TaskArithmetic()
    bank = build_bank(tiny.experts, tiny.base, method=method)
    choice = choose_scaling(bank, method, probe)
    for scaling in (0.5 * choice.scaling, 0.8 * choice.scaling, 1.25 * choice.scaling, 2 * choice.scaling):
        weights = at_scaling(bank, method, scaling).merge()
        assert probe.read(weights).mean_entropy >= choice.curve[choice.scaling]


def test_doubts_are_warnings(tiny: Any) -> None:
    network, method = tiny.encoder(), CART(0.5)
    bank = build_bank(tiny.experts, method=method)
    with pytest.warns(MergeWarning) as shown:
        choose_scaling(bank, method, Probe.draw(network, tiny.data(), 3))
    said = " ".join(str(one.message) for one in shown)
    assert f"fewer than {FEW_INPUTS} inputs of alpha, beta, gamma" in said
    assert len(tiny.tasks) < FEW_TASKS
    assert "3 tasks" in said


def test_methods_without_a_scale(tiny: Any, probe: Probe) -> None:
    with pytest.raises(MergeError, match="WeightAveraging has no scale"):
        choose_scaling(build_bank(tiny.experts, method=WeightAveraging()), WeightAveraging(), probe)


@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
def test_a_recipe_follows_the_rule(tiny: Any) -> None:
    options: dict[str, Any] = {"experts": tiny.experts, "base": tiny.base, "data": tiny.data(), "accelerator": "cpu"}
    recipe = MergeRecipe(tiny.encoder(), method=CART(0.5, "entropy"), **options)
    chosen = recipe.to_bank().method["chosen"]["scaling"]  # type: ignore[index]
    torch.testing.assert_close(recipe.coefficients(), torch.full_like(recipe.coefficients(), chosen), rtol=1e-5, atol=0)
    with pytest.raises(MergeError, match="entropy looks at unlabelled inputs"):
        MergeRecipe(tiny.encoder(), method=CART(0.5, "entropy"), **options | {"data": None})


@pytest.mark.parametrize("method", [ESM(samples=8), RegMean(samples=8)], ids=["esm", "regmean"])
@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
def test_moments_are_collected_once_and_read_again(method: Any, tiny: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from dataclasses import replace

    import lit_merge.choose.unlabelled as module

    options: dict[str, Any] = {"experts": tiny.experts, "base": tiny.base, "accelerator": "cpu"}
    collected = MergeRecipe(tiny.encoder(), method=method, data=tiny.data(), **options).to_bank()
    kept = replace(method, moments=str(tmp_path / "moments"))
    written = MergeRecipe(tiny.encoder(), method=kept, data=tiny.data(), **options).to_bank()
    monkeypatch.setattr(module, "collect_moments", lambda *_, **__: pytest.fail("collected again"))
    read = MergeRecipe(tiny.encoder(), method=kept, data=tiny.data(), **options).to_bank()
    written_merged = written.merge()
    read_merged = read.merge()
    for name, value in collected.merge().items():
        torch.testing.assert_close(written_merged[name], value)
        torch.testing.assert_close(read_merged[name], value)


def test_without_data_moments_are_said_to_be_missing(tiny: Any) -> None:
    with pytest.warns(MergeWarning, match="have no second moments"):
        MergeRecipe(tiny.encoder(), experts=tiny.experts, base=tiny.base, method=ESM())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MergeRecipe(tiny.encoder(), experts=tiny.experts, base=tiny.base, method=CART(0.5, 1.0))


def test_more_samples_than_there_are(tiny: Any) -> None:
    with pytest.raises(MergeError, match="task alpha has 21 unlabelled images, 32 are asked for"):
        MergeRecipe(
            tiny.encoder(), experts=tiny.experts, base=tiny.base, method=ESM(), data=tiny.data(), accelerator="cpu"
        )
