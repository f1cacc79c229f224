"""AWD on the Gram matrix against gradient descent on whole vectors (METHODS: arXiv 2411.18729)."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lit_merge import (
    AWD,
    CART,
    TIES,
    TSVM,
    Experts,
    MergeError,
    MergeMethod,
    MergeWarning,
    TaskArithmetic,
    TaskBank,
    WeightAveraging,
    build_bank,
)
from lit_merge.experts.stream import WeightStream
from lit_merge.methods.awd import Disentangled, disentangle, loss_and_gradient

State = dict[str, Tensor]
SHAPES = {"resblocks.0.mlp.c_fc.weight": (9, 7), "conv1.weight": (3, 2, 2, 2), "ln.bias": (5,), "logit_scale": ()}


def make(tasks: int, seed: int = 0, dtype: torch.dtype = torch.float64, shared: float = 1.0) -> tuple[dict, State]:
    """Experts whose task vectors share a part, and their base."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    base = {name: draw(shape) for name, shape in SHAPES.items()}
    common = {name: shared * draw(shape) for name, shape in SHAPES.items()}
    experts = {
        f"task{t}": {n: (base[n] + 0.3 * common[n] + 0.3 * draw(s)).to(dtype) for n, s in SHAPES.items()}
        for t in range(tasks)
    }
    base = {name: value.to(dtype) for name, value in base.items()}
    for state in (base, *experts.values()):
        state["steps"] = torch.tensor(7)
    return experts, base


def vectors(experts: dict[str, State], base: State, names: list[str] | None = None) -> Tensor:
    """Task vectors (T, P) as whole float64 vectors."""
    flat = lambda state: torch.cat([state[n].double().reshape(-1) for n in names or SHAPES])  # noqa: E731
    return torch.stack([flat(expert) - flat(base) for expert in experts.values()])


def value(tau: Tensor, delta: Tensor, alpha: float) -> Tensor:
    """L, word for word."""
    phi = tau - delta
    pairs = [(i, j) for i in range(len(tau)) for j in range(len(tau)) if i != j]
    cos = [(phi[i] @ phi[j] / (phi[i].norm() * phi[j].norm())).abs() for i, j in pairs]
    return torch.stack(cos).mean() + alpha * delta.norm()


def descent(tau: Tensor, alpha: float, step: float, steps: int) -> tuple[Tensor, Tensor]:
    """Gradient descent on whole vectors: δ before every step and after the last, and L there; it ends 100 steps after
    the smallest L."""
    delta = torch.zeros_like(tau[0])
    iterates, losses = [], []
    for _ in range(steps + 1):
        delta = delta.clone().requires_grad_()
        loss = value(tau, delta, alpha)
        loss.backward()
        iterates.append(delta.detach())
        losses.append(loss.detach())
        if len(losses) - 1 - torch.stack(losses).argmin() == 100:
            break
        delta = delta.detach() - step * delta.grad
    return torch.stack(iterates), torch.stack(losses)


def best(tau: Tensor, alpha: float = 0.1, step: float = 0.01, steps: int = 300) -> Tensor:
    """The δ that the literal loop keeps, with the scale taken out first."""
    scale = tau.square().sum(1).mean().sqrt()
    iterates, losses = descent(tau / scale, alpha, step, steps)
    return scale * iterates[losses.argmin()]


def fit(transform: AWD, experts: dict[str, State], base: State) -> Disentangled:
    change = transform.fit(Experts(experts, base))
    assert isinstance(change, Disentangled)
    return change


def without(experts: dict[str, State], base: State, delta: dict[str, Tensor]) -> dict[str, State]:
    return {t: {n: w - delta[n] if n in delta else w for n, w in expert.items()} for t, expert in experts.items()}


def split(delta: Tensor) -> dict[str, Tensor]:
    parts = delta.split([math.prod(shape) for shape in SHAPES.values()])
    return {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("steps", [1, 10, 300])
def test_every_iterate_is_that_of_descent_on_whole_vectors(tasks: int, steps: int) -> None:
    tau = vectors(*make(tasks, seed=tasks))
    tau = tau / tau.square().sum(1).mean().sqrt()
    kept, history = disentangle(tau @ tau.T, 0.1, 0.01, steps)
    iterates, losses = descent(tau, 0.1, 0.01, steps)
    assert len(history) > min(steps, 100)
    assert history[-1].abs().max() > 1e-3
    torch.testing.assert_close(history @ tau, iterates, rtol=0, atol=1e-12)
    torch.testing.assert_close(kept @ tau, iterates[losses.argmin()], rtol=0, atol=1e-12)


@given(st.integers(2, 6), st.integers(0, 999), st.floats(0, 2))
@settings(max_examples=25, deadline=None)
def test_gradient_is_that_of_autograd(tasks: int, seed: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    tau = torch.randn(tasks, 40, generator=generator, dtype=torch.float64)
    c = torch.randn(tasks, generator=generator, dtype=torch.float64)
    delta = (c @ tau).requires_grad_()
    loss = value(tau, delta, alpha)
    loss.backward()
    ours, gradient = loss_and_gradient(tau @ tau.T, c, alpha)
    torch.testing.assert_close(ours, loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient @ tau, delta.grad, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_fit_is_the_literal_loop(granularity: str) -> None:
    experts, base = make(4)
    change = fit(AWD(granularity=granularity), experts, base)
    if granularity == "model":
        delta = split(best(vectors(experts, base)))
    else:
        # A scalar weight has cosines of ±1 whatever is subtracted: nothing falls there.
        delta = {n: best(vectors(experts, base, [n])).reshape(s) for n, s in SHAPES.items() if n != "logit_scale"}
        delta["logit_scale"] = torch.zeros((), dtype=torch.float64)
    assert all(delta[name].norm() > 1e-3 for name in SHAPES if name != "logit_scale")
    wanted = without(experts, base, delta)
    for weight in WeightStream(Experts(experts, base), True):
        if weight.name in SHAPES:
            stacked = torch.stack([expert[weight.name] for expert in wanted.values()])
            torch.testing.assert_close(change(weight).experts, stacked, rtol=0, atol=1e-12)


@given(st.integers(2, 5), st.integers(0, 99), st.floats(0.3, 30), st.floats(0.01, 0.5), st.floats(1e-3, 3e-2))
@settings(max_examples=8, deadline=None)
def test_literal_is_the_same_with_other_units(tasks: int, seed: int, size: float, alpha: float, step: float) -> None:
    experts, base = make(tasks, seed)
    experts = {t: {n: base[n] + size * (w - base[n]) for n, w in e.items() if n in SHAPES} for t, e in experts.items()}
    base = {name: base[name] for name in SHAPES}
    s = vectors(experts, base).square().sum(1).mean().sqrt().item()
    scaled = fit(AWD(alpha=alpha * s, step=step / s**2, steps=40), experts, base)
    literal = fit(AWD(alpha=alpha, step=step, steps=40, literal=True), experts, base)
    for name in SHAPES:
        torch.testing.assert_close(literal.coefficients[name], scaled.coefficients[name], rtol=1e-7, atol=1e-9)


def test_literal_is_descent_on_the_vectors_as_they_are() -> None:
    experts, base = make(3)
    tau = vectors(experts, base)
    iterates, losses = descent(tau, 0.1, 0.01, 60)
    c = fit(AWD(steps=60, literal=True), experts, base).coefficients["ln.bias"]
    torch.testing.assert_close(c @ tau, iterates[losses.argmin()], rtol=0, atol=1e-12)


def test_the_default_does_not_depend_on_the_size_of_task_vectors() -> None:
    experts, base = make(3)
    small = {t: {n: base[n] + 1e-3 * (w - base[n]) for n, w in e.items() if n in SHAPES} for t, e in experts.items()}
    large = {t: {n: e[n] for n in SHAPES} for t, e in experts.items()}
    base = {name: base[name] for name in SHAPES}
    one, other = (fit(AWD(), models, base) for models in (small, large))
    torch.testing.assert_close(one.coefficients["ln.bias"], other.coefficients["ln.bias"], rtol=1e-6, atol=1e-8)
    assert one.report["delta_norm"] == pytest.approx(1e-3 * other.report["delta_norm"], rel=1e-6)


def test_report_says_what_happened() -> None:
    experts, base = make(4)
    tau = vectors(experts, base)
    delta = best(tau)
    for granularity in ("model", "tensor"):
        change = fit(AWD(granularity=granularity), experts, base)
        shifted = [
            w.experts - change(w).experts for w in WeightStream(Experts(experts, base), True) if w.name in SHAPES
        ]
        found = torch.cat([part.reshape(4, -1) for part in shifted], 1)
        assert change.report["delta_norm"] == pytest.approx(found[0].norm().item())
        assert change.report["mean_cos_before"] == pytest.approx(value(tau, torch.zeros_like(delta), 0.0).item())
        assert change.report["mean_cos_after"] == pytest.approx(value(tau, found[0], 0.0).item())
        assert change.report["mean_cos_after"] < change.report["mean_cos_before"]


def test_the_record_of_a_bank_carries_the_report(tmp_path: Path) -> None:
    experts, base = make(3)
    bank = build_bank(experts, base, method=TaskArithmetic(), transform=AWD(steps=20))
    record = bank.method["transform"]
    assert record == {"class_path": "AWD", "init_args": record["init_args"]} | fit(AWD(steps=20), experts, base).report
    assert record["init_args"]["steps"] == 20
    bank.save(tmp_path / "bank")
    assert TaskBank.load(tmp_path / "bank").method["transform"] == record


def test_one_task_is_left_alone() -> None:
    experts, base = make(1)
    change = fit(AWD(), experts, base)
    assert not change.coefficients["ln.bias"].any()
    assert change.report == {"delta_norm": 0.0, "mean_cos_before": 0.0, "mean_cos_after": 0.0}
    plain, changed = (build_bank(experts, base, method=TaskArithmetic(), transform=t) for t in (None, AWD()))
    assert changed.fingerprint == plain.fingerprint


@pytest.mark.parametrize("turned", [False, True])
def test_orthogonal_task_vectors_are_left_alone(turned: bool) -> None:
    """Also where rounding makes cosines of 1e-17 of them, whose sign means nothing."""
    generator = torch.Generator().manual_seed(0)
    frame = (
        torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0] if turned else torch.eye(20)
    )
    experts = {f"task{t}": {"w": frame[t] * (t + 1.0)} for t in range(4)}
    base = {"w": torch.zeros_like(frame[0])}
    change = fit(AWD(), experts, base)
    assert not change.coefficients["w"].any()
    assert change.report["delta_norm"] == 0


@given(st.integers(2, 7), st.integers(0, 999), st.floats(0, 5), st.floats(1e-4, 10), st.floats(-1, 1))
@settings(max_examples=12, deadline=None)
def test_the_kept_iterate_is_never_worse_than_the_start(
    tasks: int, seed: int, alpha: float, step: float, shared: float
) -> None:
    tau = vectors(*make(tasks, seed, shared=shared))
    gram = tau @ tau.T
    kept, history = disentangle(gram, alpha, step, 60)
    losses = torch.stack([loss_and_gradient(gram, c, alpha)[0] for c in history])
    assert loss_and_gradient(gram, kept, alpha)[0] == losses.min()
    assert losses.min() <= losses[0]


def test_it_stops_once_nothing_falls() -> None:
    tau = vectors(*make(3))
    gram = tau @ tau.T
    _, history = disentangle(gram, 0.1, 100.0, 10_000)
    losses = torch.stack([loss_and_gradient(gram, c, 0.1)[0] for c in history])
    assert len(history) < 1000
    assert len(history) - 1 - losses.argmin() == 100


def test_several_grams_at_once_are_each_by_itself() -> None:
    grams = torch.stack([tau @ tau.T for tau in (vectors(*make(3, seed)) for seed in range(4))])
    together, _ = disentangle(grams, 0.1, 0.02, 200)
    for gram, c in zip(grams, together, strict=True):
        torch.testing.assert_close(disentangle(gram, 0.1, 0.02, 200)[0], c, rtol=0, atol=1e-14)


@pytest.mark.parametrize("granularity", ["model", "tensor"])
def test_identical_experts_are_named(granularity: str) -> None:
    experts, base = make(4)
    experts["task3"] = dict(experts["task1"])
    with pytest.raises(MergeError, match="experts task1 and task3 are identical") as error:
        fit(AWD(granularity=granularity), experts, base)
    assert "\n" not in str(error.value)


def test_experts_that_differ_in_one_number_are_not_identical() -> None:
    experts, base = make(3, dtype=torch.float32)
    experts["task2"] = experts["task1"] | {"logit_scale": experts["task1"]["logit_scale"] + 1e-4}
    assert fit(AWD(), experts, base).report["delta_norm"] > 0


@pytest.mark.filterwarnings("ignore:the expert .* is the base")
def test_an_expert_that_changed_nothing_counts_for_nothing() -> None:
    experts, base = make(3)
    alone = fit(AWD(), experts, base)
    beside = fit(AWD(), experts | {"still": dict(base), "idle": dict(base)}, base)
    for name in SHAPES:
        torch.testing.assert_close(beside.coefficients[name][:3], alone.coefficients[name], rtol=0, atol=1e-14)
        assert not beside.coefficients[name][3:].any()
    assert beside.report == pytest.approx(alone.report)
    bank = build_bank(experts | {"still": dict(base)}, base, method=TaskArithmetic(), transform=AWD())
    for name, merged in bank.expert("still").items():
        assert torch.equal(merged, base[name])


def test_a_tensor_that_one_expert_left_alone_stays_so() -> None:
    experts, base = make(3)
    experts["task1"]["conv1.weight"] = base["conv1.weight"]
    bank = build_bank(experts, base, method=TaskArithmetic(), transform=AWD(granularity="tensor"))
    assert torch.equal(bank.expert("task1")["conv1.weight"], base["conv1.weight"])
    pair = {task: experts[task] for task in ("task0", "task2")}
    delta = best(vectors(pair, base, ["conv1.weight"])).view(SHAPES["conv1.weight"])
    torch.testing.assert_close(bank.expert("task0")["conv1.weight"], experts["task0"]["conv1.weight"] - delta)


@pytest.mark.filterwarnings("ignore:the expert.* (are identical|is the base)")
def test_experts_that_all_equal_the_base() -> None:
    _, base = make(1)
    bank = build_bank({f"task{t}": dict(base) for t in range(3)}, base, method=TaskArithmetic(), transform=AWD())
    for name, merged in bank.merge().items():
        assert torch.equal(merged, base[name])


def test_integers_stay_and_a_base_is_needed() -> None:
    experts, base = make(3)
    bank = build_bank(experts, base, method=WeightAveraging(), transform=AWD())
    assert torch.equal(bank.merge()["steps"], base["steps"])
    assert bank.merge()["steps"].dtype == torch.int64
    with pytest.raises(MergeError, match="AWD needs the pretrained checkpoint"):
        build_bank(experts, method=WeightAveraging(), transform=AWD())


def arithmetic(experts: dict[str, State], base: State) -> State:
    return {n: base[n] + 0.3 * sum(e[n] - base[n] for e in experts.values()) for n in SHAPES}


def trimmed(experts: dict[str, State], base: State) -> State:
    tau = vectors(experts, base)
    k = int(0.2 * tau.shape[1])
    kept = torch.stack([t.where(t.abs() >= t.abs().sort(descending=True).values[k - 1], 0) for t in tau])
    agree = kept.sign() == kept.sum(0).sign()
    merged = (kept * agree).sum(0) / agree.sum(0).clamp_min(1)
    return {name: base[name] + part for name, part in split(merged).items()}


def whitened(experts: dict[str, State], base: State) -> State:
    merged = {n: base[n] + 1.0 * sum(e[n] - base[n] for e in experts.values()) / len(experts) for n in SHAPES}
    name = "resblocks.0.mlp.c_fc.weight"
    parts = [torch.linalg.svd(e[name] - base[name], full_matrices=False) for e in experts.values()]
    k = min(SHAPES[name]) // len(experts)
    u, s, v = (
        torch.cat([p[0][:, :k] for p in parts], 1),
        torch.cat([p[1][:k] for p in parts]),
        [p[2][:k] for p in parts],
    )
    polar = [a @ b for a, _, b in (torch.linalg.svd(x, full_matrices=False) for x in (u, torch.cat(v).T))]
    return merged | {name: base[name] + polar[0] @ s.diag() @ polar[1].T}


@pytest.mark.parametrize(
    ("method", "oracle"),
    [(TaskArithmetic(), arithmetic), (TIES(), trimmed), (TSVM(), whitened)],
    ids=lambda x: str(x)[:9],
)
def test_in_front_of_a_method(method: MergeMethod, oracle) -> None:
    experts, base = make(3)
    wanted = oracle(without(experts, base, split(best(vectors(experts, base)))), base)
    bank = build_bank(experts, base, method=method, transform=AWD())
    plain = build_bank(experts, base, method=method)
    merged = bank.merge()
    for name in SHAPES:
        torch.testing.assert_close(merged[name], wanted[name], rtol=1e-9, atol=1e-9)
    assert any((bank.merge()[name] - plain.merge()[name]).abs().max() > 1e-3 for name in SHAPES)


def test_files_in_half_precision(tmp_path: Path) -> None:
    experts, base = make(3, dtype=torch.bfloat16)
    save_file(base, tmp_path / "base.safetensors")
    for task, state in experts.items():
        save_file(state, tmp_path / f"{task}.safetensors")
    paths = {task: tmp_path / f"{task}.safetensors" for task in experts}
    bank = build_bank(paths, tmp_path / "base.safetensors", method=TaskArithmetic(), transform=AWD())
    double = {task: {n: w.double() for n, w in e.items()} for task, e in experts.items()}
    wanted = arithmetic(
        without(double, base, split(best(vectors(experts, base)))), {n: base[n].double() for n in SHAPES}
    )
    whole = bank.merge()
    for name in SHAPES:
        merged = whole[name]
        assert merged.dtype == torch.bfloat16
        assert (merged.double() - wanted[name]).norm() < 8 * torch.finfo(torch.bfloat16).eps * wanted[name].norm()


def test_centring_makes_it_needless() -> None:
    experts, base = make(3)
    method = CART(rank_ratio=0.5)
    with pytest.warns(MergeWarning, match="AWD changes nothing under CART"):
        bank = build_bank(experts, base, method=method, transform=AWD())
    plain = build_bank(experts, base, method=method)
    assert bank.fingerprint == plain.fingerprint
    assert torch.equal(bank.coefficients, plain.coefficients)
    assert "transform" not in bank.method


@pytest.mark.parametrize(
    "option",
    [{"alpha": -0.1}, {"alpha": math.nan}, {"step": 0.0}, {"step": math.inf}, {"steps": 0}],
)
def test_options_outside_their_range(option: dict[str, object]) -> None:
    with pytest.raises(MergeError, match=f"^(AWD: )?{next(iter(option))}="):
        AWD(**option)
