"""What every method must do, against a dense float64 oracle written here from the formulas.

A new method joins with one line in METHODS.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_merge import (
    CART,
    ESM,
    TIES,
    TSVM,
    ConsensusTA,
    IsoC,
    IsoCTS,
    LowRank,
    MergeError,
    MergeMethod,
    RegMean,
    TaskArithmetic,
    TaskBank,
    TSVCompress,
    WeightAveraging,
    build_bank,
)
from lit_merge.merge.export import export_bank

State = dict[str, Tensor]
# Experts (T, …) and base of one weight, and whether it is decomposed → dense origin and dense deltas (T or 1, …).
Oracle = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
# The same for methods that look at all weights at once: experts and base → origin and deltas of every weight.
WholeOracle = Callable[[dict[str, State], State], dict[str, tuple[Tensor, Tensor]]]

BLOCK = "transformer.resblocks.{}.{}"
SHAPES = {
    "conv1.weight": (6, 3, 2, 2),
    "positional_embedding": (5, 12),
    "ln_pre.weight": (12,),
    **{BLOCK.format(i, "attn.in_proj_weight"): (36, 12) for i in range(2)},
    **{BLOCK.format(i, "attn.in_proj_bias"): (36,) for i in range(2)},
    **{BLOCK.format(i, "mlp.c_fc.weight"): (20, 12) for i in range(2)},
    **{BLOCK.format(i, "mlp.c_proj.weight"): (12, 20) for i in range(2)},
    "proj": (12, 8),
}
IN_BLOCK = {name for name in SHAPES if "resblocks" in name and not name.endswith("bias")}
TWO_D = {name for name, shape in SHAPES.items() if len(shape) == 2}


def top(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ s[:rank].diag() @ vh[:rank]


def averaging(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    return sum(experts) / len(experts), torch.zeros_like(experts)


def arithmetic(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    return base, torch.stack([expert - base for expert in experts])


def cart(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    mean = sum(experts) / len(experts)
    if not matrix:
        return mean, torch.stack([expert - mean for expert in experts])
    rank = int(0.25 * min(mean.shape))
    return mean, torch.stack([top(expert - mean, rank) for expert in experts])


def tsv(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    vectors = torch.stack([expert - base for expert in experts])
    if not matrix:
        return base, vectors / len(experts)
    rank = min(base.shape) // len(experts)
    us, ss, vhs = zip(*(torch.linalg.svd(vector, full_matrices=False) for vector in vectors), strict=True)
    # A task vector that is zero has no singular vectors.
    there = [(s[:rank] > 1e-12).to(s) for s in ss]
    u = torch.cat([one[:, :rank] * kept for one, kept in zip(us, there, strict=True)], 1)
    v = torch.cat([one[:rank].T * kept for one, kept in zip(vhs, there, strict=True)], 1)
    whitened = []
    for factor in (u, v):
        values, vectors_ = torch.linalg.eigh(factor.T @ factor)
        roots = torch.where(values > 1e-12, values.clamp_min(1e-12).rsqrt(), 0)
        whitened.append((factor @ vectors_ @ roots.diag() @ vectors_.T).split(rank, 1))
    return base, torch.stack([a @ s[:rank].diag() @ b.T for a, s, b in zip(whitened[0], ss, whitened[1], strict=True)])


def iso(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    total = sum(expert - base for expert in experts)
    if not matrix:
        return base, total[None] / len(experts)
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    return base, (u @ vh * s.mean())[None]


def iso_cts(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    vectors = [expert - base for expert in experts]
    if not matrix:
        return base, sum(vectors)[None] / len(experts)
    r = min(base.shape)
    q = round((r - int(0.5 * r)) / len(experts))
    c = r - q * len(experts)
    u, s, vh = torch.linalg.svd(sum(vectors), full_matrices=False)
    left, values, right = [u[:, :c]], [s[:c]], [vh[:c].T]
    for vector in vectors:
        a, s, b = torch.linalg.svd(vector - u[:, :c] @ u[:, :c].T @ vector, full_matrices=False)
        q_there = int((s[:q] > 1e-12).sum())
        left, values, right = [*left, a[:, :q_there]], [*values, s[:q_there]], [*right, b[:q_there].T]
    polar = [a @ b for a, _, b in (torch.linalg.svd(torch.cat(x, 1), full_matrices=False) for x in (left, right))]
    return base, (torch.cat(values).mean() * polar[0] @ polar[1].T)[None]


def consensus(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    vectors = torch.stack([expert - base for expert in experts])
    total = vectors.sum(0)
    masks = [vector.abs() >= 0.4 * (total - vector).abs() for vector in vectors]
    return base, torch.stack([vector * (sum(mask.int() for mask in masks) >= 2) for vector in vectors])


def compress(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    rank = min(base.shape) // len(experts) if matrix else None
    return base, torch.stack([top(expert - base, rank) if matrix else expert - base for expert in experts])


def ties(experts: dict[str, State], base: State) -> dict[str, tuple[Tensor, Tensor]]:
    names = [name for name, value in base.items() if value.is_floating_point()]
    flat = lambda state: torch.cat([state[name].double().flatten() for name in names])  # noqa: E731
    trimmed = torch.stack([flat(state) - flat(base) for state in experts.values()])
    for vector in trimmed:
        threshold = vector.abs().sort(descending=True).values[int(0.2 * len(vector)) - 1]
        vector[vector.abs() < threshold] = 0
    elected = trimmed.sum(0).sign()
    elected[elected == 0] = elected.sum().sign()
    agree = trimmed.sign() == elected
    parts = (trimmed * agree / agree.sum(0).clamp_min(1)).split([base[name].numel() for name in names], 1)
    return {
        name: (base[name].double(), part.view(-1, *base[name].shape)) for name, part in zip(names, parts, strict=True)
    }


def inputs(task: int, width: int) -> Tensor:
    """X (rows, n): what flows into every matrix of this width in this task's expert."""
    return torch.randn(2 * width, width, generator=torch.Generator().manual_seed(100 * task + width)).double()


MOMENTS = {
    f"task{t}": {name: inputs(t, SHAPES[name][1]).T @ inputs(t, SHAPES[name][1]) for name in TWO_D} for t in range(4)
}


def esm(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    vectors = experts - base
    if not matrix:
        return base, vectors / len(experts)
    p, a = [], []
    for t, vector in enumerate(vectors):
        _, s, vh = torch.linalg.svd(inputs(t, base.shape[1]) @ vector.T, full_matrices=False)
        rank = min(len(base) // len(experts), int((s > 1e-10 * s[0]).sum()))
        p.append(vh[:rank].T)
        a.append(vh[:rank] @ vector)
    mean = sum(one.norm() for one in a) / len(a)
    a = [one * (one.norm() / mean) ** 2 for one in a]
    ranks = [len(one) for one in a]
    wide, tall = torch.cat(p, 1), torch.cat(a)
    columns = tall.square().sum(0).sqrt()
    tall = tall * (columns / columns.mean()) ** 2
    polar = []
    for factor in (wide, tall):
        u, _, vh = torch.linalg.svd(factor, full_matrices=False)
        polar.append(u @ vh)
    return base, torch.stack([x @ y for x, y in zip(polar[0].split(ranks, 1), polar[1].split(ranks), strict=True)])


def esm_layers(values: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    found = dict(values)
    for weight in IN_BLOCK:
        norms = [values[BLOCK.format(i, weight.split(".", 3)[3])][1].sum(0).norm() for i in range(2)]
        origin, deltas = values[weight]
        found[weight] = origin, deltas * (deltas.sum(0).norm() / (sum(norms) / 2)) ** 2
    return found


def regmean(experts: Tensor, base: Tensor, matrix: bool) -> tuple[Tensor, Tensor]:
    if not matrix:
        return base, (sum(experts) / len(experts) - base)[None]
    left, right = 0.0, 0.0
    for t, expert in enumerate(experts):
        x = inputs(t, base.shape[1])
        c = x.T @ x
        shrunk = 0.9 * c + 0.1 * c.diagonal().diag()
        left, right = left + shrunk, right + shrunk @ expert.T
    return base, ((torch.linalg.inv(left) @ right).T - base)[None]


# What a method's closing pass makes of the oracle's values of all weights.
CLOSING = {"esm": esm_layers}
METHODS: dict[str, tuple[MergeMethod, Oracle | WholeOracle, set[str], float]] = {
    "averaging": (WeightAveraging(), averaging, set(), 1.0),
    "arithmetic": (TaskArithmetic(scaling=0.3), arithmetic, set(), 0.3),
    "cart": (CART(rank_ratio=0.25, scaling=1.7), cart, IN_BLOCK, 1.7),
    "tsv": (TSVM(scaling=1.2), tsv, TWO_D, 1.2),
    "iso": (IsoC(scaling=0.9), iso, TWO_D, 0.9),
    "iso_cts": (IsoCTS(common_ratio=0.5, scaling=0.9), iso_cts, TWO_D, 0.9),
    "consensus": (ConsensusTA(scaling=0.4), consensus, set(), 0.4),
    "compress": (TSVCompress(), compress, TWO_D, 1.0),
    "ties": (TIES(scaling=0.8), ties, set(), 0.8),
    "esm": (ESM(scaling=1.1, moments=MOMENTS), esm, TWO_D, 1.1),
    "regmean": (RegMean(moments=MOMENTS), regmean, TWO_D, 1.0),
}
every_method = pytest.mark.parametrize("name", METHODS)


def make(tasks: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[dict[str, State], State]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    base = {name: draw(shape) for name, shape in SHAPES.items()}
    experts = {
        f"task{t}": {name: (value + 0.3 * draw(value.shape)).to(dtype) for name, value in base.items()}
        for t in range(tasks)
    }
    base = {name: value.to(dtype) for name, value in base.items()}
    for state in (base, *experts.values()):
        state["frozen.weight"] = torch.arange(6.0).to(dtype)
        state["steps"] = torch.tensor(7)
    return experts, base


def dense(name: str, experts: dict[str, State], base: State) -> dict[str, tuple[Tensor, Tensor]]:
    _, oracle, matrices, _ = METHODS[name]
    if oracle is ties:
        return oracle(experts, base)
    values = {
        weight: oracle(
            torch.stack([e[weight] for e in experts.values()]).double(), base[weight].double(), weight in matrices
        )
        for weight in SHAPES
    }
    return CLOSING[name](values) if name in CLOSING else values


def expected(name: str, experts: dict[str, State], base: State) -> State:
    scale = METHODS[name][3]
    return {weight: o + scale * d.sum(0) for weight, (o, d) in dense(name, experts, base).items()}


def build(name: str, experts: dict[str, State], base: State) -> TaskBank:
    return build_bank(experts, base, method=METHODS[name][0])


@every_method
@pytest.mark.parametrize("tasks", [3, 4])
def test_value(name: str, tasks: int) -> None:
    experts, base = make(tasks)
    merged = build(name, experts, base).merge()
    for weight, value in expected(name, experts, base).items():
        torch.testing.assert_close(merged[weight], value, rtol=1e-10, atol=1e-10)
    assert torch.equal(merged["frozen.weight"], base["frozen.weight"])
    assert torch.equal(merged["steps"], base["steps"])
    assert merged.keys() == base.keys()


@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
@every_method
@pytest.mark.parametrize("tasks", [1, 2])
def test_one_and_two_tasks(name: str, tasks: int) -> None:
    experts, base = make(tasks)
    merged = build(name, experts, base).merge()
    for weight, value in expected(name, experts, base).items():
        torch.testing.assert_close(merged[weight], value, rtol=1e-9, atol=1e-9)


def test_weight_averaging_has_nothing_to_differentiate() -> None:
    assert build("averaging", *make(3)).layers == ()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "averaging"])
def test_gradient(name: str) -> None:
    experts, base = make(3)
    bank = build(name, experts, base)
    generator = torch.Generator().manual_seed(1)
    probe = {w: torch.randn(SHAPES[w], generator=generator, dtype=torch.float64) for w in SHAPES}
    start = torch.rand(bank.coefficients.shape, generator=generator, dtype=torch.float64)

    ours = start.clone().requires_grad_()
    found = bank.merge(ours)
    sum((found[w].tanh() * probe[w]).sum() for w in SHAPES).backward()
    plain = start.clone().requires_grad_()
    oracle = dense(name, experts, base)
    merged = {w: o for w, (o, _) in oracle.items()}
    for i, w in enumerate(bank.layers):
        merged[w] = merged[w] + torch.einsum("t,t...->...", plain[:, i], oracle[w][1])
    sum((merged[w].tanh() * probe[w]).sum() for w in SHAPES).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-9, atol=1e-9)


@every_method
def test_the_order_of_tasks_does_not_matter(name: str) -> None:
    experts, base = make(4)
    merged = build(name, experts, base).merge()
    turned = build(name, dict(reversed(experts.items())), base)
    assert turned.tasks == tuple(reversed(experts))
    for weight, value in turned.merge().items():
        torch.testing.assert_close(value, merged[weight], rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:the expert.* (are identical|is the base)")
@every_method
def test_experts_that_changed_nothing(name: str) -> None:
    _, base = make(3)
    merged = build(name, {f"task{t}": dict(base) for t in range(3)}, base).merge()
    for weight, value in base.items():
        assert torch.equal(merged[weight], value)


@pytest.mark.filterwarnings("ignore:the expert .* is the base")
@every_method
def test_one_expert_that_changed_nothing(name: str) -> None:
    experts, base = make(3)
    experts["task1"] = dict(base)
    merged = build(name, experts, base).merge()
    assert all(value.isfinite().all() for value in merged.values())
    for weight, value in expected(name, experts, base).items():
        torch.testing.assert_close(merged[weight], value, rtol=1e-9, atol=1e-9)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_rounding_is_the_only_error(name: str, dtype: torch.dtype) -> None:
    experts, base = make(3, dtype)
    bank = build(name, experts, base)
    # What singular vectors lose in float32: most where small singular values are whitened.
    decomposition = 1e-10 if dtype == torch.float64 else 3e-4 if name == "tsv" else 1e-5
    wanted = expected(name, experts, base)
    for weight, value in bank.merge().items():
        assert value.dtype == base[weight].dtype
        assert value.device == base[weight].device
        if weight in SHAPES:
            error = (value.double() - wanted[weight]).norm() / wanted[weight].norm()
            assert error < max(8 * torch.finfo(dtype).eps, decomposition)


@every_method
def test_files_and_state_dicts_give_the_same_bank(name: str, tmp_path: Path) -> None:
    experts, base = make(3, torch.float32)
    save_file(base, tmp_path / "base.safetensors")
    for task, state in experts.items():
        save_file(dict(reversed(state.items())), tmp_path / f"{task}.safetensors")
    paths = {task: tmp_path / f"{task}.safetensors" for task in experts}
    fromfiles = build_bank(paths, tmp_path / "base.safetensors", method=METHODS[name][0]).merge()
    for weight, value in build(name, experts, base).merge().items():
        torch.testing.assert_close(fromfiles[weight], value, rtol=1e-6, atol=1e-6)


@every_method
def test_save_and_load_change_nothing(name: str, tmp_path: Path) -> None:
    experts, base = make(3, torch.float16)
    bank = build(name, experts, base)
    bank.save(tmp_path / "bank")
    loaded = TaskBank.load(tmp_path / "bank")
    assert loaded.fingerprint == bank.fingerprint
    assert (loaded.tasks, loaded.layers, loaded.method) == (bank.tasks, bank.layers, bank.method)
    loaded_merged = loaded.merge(dtype=torch.float32)
    for weight, value in bank.merge(dtype=torch.float32).items():
        assert torch.equal(loaded_merged[weight], value)


@every_method
def test_indexing_one_task(name: str) -> None:
    experts, base = make(3)
    bank = build(name, experts, base)
    if bank.shared:
        with pytest.raises(MergeError, match="one delta for all tasks"):
            bank.expert("task1")
        return
    values = dense(name, experts, base)
    for weight, value in bank.expert("task1").items():
        if weight in SHAPES:
            torch.testing.assert_close(value, values[weight][0] + values[weight][1][1], rtol=1e-9, atol=1e-9)


@every_method
def test_lower_ranks_are_the_leading_directions(name: str) -> None:
    experts, base = make(3)
    bank = build(name, experts, base)
    cut = bank.truncate(0.1)
    coefficients = bank.coefficients
    cut_merged = cut.merge()
    for i, weight in enumerate(bank.layers):
        delta = bank.deltas[weight]
        whole = delta.to_dense() if isinstance(delta, LowRank) else delta
        if isinstance(delta, LowRank):
            rank = max(1, int(0.1 * min(delta.shape[1:])))
            whole = torch.stack([top(one, rank) if one.any() else one for one in whole])
            if delta.S.unique().numel() < delta.S.numel():  # a flat spectrum: which directions lead is arbitrary
                whole = (delta.U[..., :rank] * delta.S[:, None, :rank]) @ delta.V[..., :rank].mT
        expected = bank.origin[weight] + torch.einsum("t,t...->...", coefficients[:, i], whole)
        torch.testing.assert_close(cut_merged[weight], expected, rtol=1e-9, atol=1e-9)


@every_method
@pytest.mark.parametrize("format", ["bank", "merged"])
def test_export(name: str, format: str, tmp_path: Path) -> None:
    bank = build(name, *make(3, torch.float32))
    output = tmp_path / ("out" if format == "bank" else "out.safetensors")
    export_bank(bank, output, format)  # type: ignore[arg-type]
    found = TaskBank.load(output).merge() if format == "bank" else load_file(output)
    for weight, value in bank.merge().items():
        assert torch.equal(found[weight], value)


@every_method
def test_tied_weights_stay_tied(name: str, tmp_path: Path) -> None:
    """Two names for one tensor, as state dicts of models with tied embeddings have."""
    experts, base = make(3, torch.float32)
    for state in (base, *experts.values()):
        state["tied.weight"] = state["conv1.weight"]
    bank = build(name, experts, base)
    assert torch.equal(bank.merge()["tied.weight"], bank.merge()["conv1.weight"])
    export_bank(bank, tmp_path / "out.safetensors", "merged")
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["tied.weight"], found["conv1.weight"])
