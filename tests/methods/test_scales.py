"""Experts times a power of two merge to the same multiple, to the bit or nearly: nothing is rounded on the way."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_merge import (
    AWD,
    CART,
    ESM,
    TIES,
    TSVM,
    ConsensusTA,
    IsoC,
    IsoCTS,
    MergeError,
    MergeMethod,
    RegMean,
    TaskArithmetic,
    Transform,
    TSVCompress,
    WeightAveraging,
    build_bank,
)
from lit_merge.bank.kth_largest import kth_largest
from lit_merge.bank.linalg import independent, spectral_norms
from lit_merge.bank.low_rank import LowRank
from lit_merge.bank.weighted_sums import dense_sum, low_rank_sum
from lit_merge.report.analysis.curves import cosines, interference, kept_energy

NAMES = [f"transformer.resblocks.{i}.attn.{kind}_proj.weight" for i in (0, 1) for kind in ("out", "in")]
Model = dict[str, Tensor]
POWERS = {
    torch.float16: (-6,),
    torch.bfloat16: (100,),
    torch.float32: (-60, 100),
    torch.float64: (-900, -100, 900),
}
NEAR = {torch.float16: 0.3, torch.bfloat16: 0.1, torch.float32: 1e-4, torch.float64: 1e-9}


def times(value: Tensor, power: int) -> Tensor:
    """value · 2^power; in two steps, for powers that a float64 is too small for."""
    half = power // 2
    return value * 2.0**half * 2.0 ** (power - half)


def made(tasks: int, dtype: torch.dtype, m: int = 12, n: int = 8) -> tuple[Model, dict[str, Model]]:
    """A base and experts near it."""
    generator = torch.Generator().manual_seed(0)

    def draw(size: float) -> Model:
        shapes = dict.fromkeys(NAMES, (m, n)) | {"transformer.resblocks.0.ln_1.bias": (n,)}
        return {name: size * torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}

    base = draw(1.0)
    moved = [{name: base[name] + value for name, value in draw(0.05).items()} for _ in range(tasks)]
    rounded = [{name: value.to(dtype) for name, value in one.items()} for one in (base, *moved)]
    return rounded[0], {f"t{t}": one for t, one in enumerate(rounded[1:])}


def moments(tasks: int, n: int = 8) -> dict[str, Model]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(tasks, len(NAMES), 3 * n, n, generator=generator)
    return {f"t{t}": dict(zip(NAMES, own.mT @ own, strict=True)) for t, own in enumerate(inputs)}


def methods(tasks: int) -> Iterator[tuple[MergeMethod, Transform | None]]:
    seen = moments(tasks)
    plain = [
        WeightAveraging(),
        TaskArithmetic(),
        TaskArithmetic(rank_ratio=0.5),
        TIES(),
        TIES(merge="sum"),
        ConsensusTA(),
    ]
    plain += [RegMean(moments=seen), CART(rank_ratio=0.5), ESM(moments=seen), ESM(preset="official", moments=seen)]
    plain += [TSVM(), TSVCompress(), IsoC(), IsoCTS()]
    yield from ((one, None) for one in plain)
    yield from ((TaskArithmetic(), AWD(granularity=one)) for one in ("model", "tensor"))


def update(method: MergeMethod, transform: Transform | None, base: Model, experts: Any, svd: str) -> Model:
    """Of every weight, merge − base; of ESM as published, whose update is of one size whatever the experts', that."""
    bank = build_bank(experts, base, method=method, transform=transform, svd=svd)  # type: ignore[arg-type]
    if isinstance(method, ESM) and method.preset == "paper":
        bank = replace(bank, origin={name: torch.zeros_like(value) for name, value in bank.origin.items()})
        return {name: value for name, value in bank.merge(dtype=torch.float64).items() if value.ndim == 2}
    # Before it is rounded to the experts' dtype.
    wide = torch.float64 if torch.float64 in bank.dtypes.values() else torch.float32
    return {name: value - base[name].to(wide) for name, value in bank.merge(dtype=wide).items()}


def check(tasks: int, dtype: torch.dtype, pairs: Any, svd: str = "auto", **size: int) -> None:
    base, experts = made(tasks, dtype, **size)
    for method, transform in pairs:
        wanted = update(method, transform, base, experts, svd)
        for power in POWERS[dtype]:
            scaled = {task: {name: times(v, power) for name, v in one.items()} for task, one in experts.items()}
            low = {name: times(value, power) for name, value in base.items()}
            if transform is not None and abs(power) == 900:
                with pytest.raises(MergeError, match="beyond float64: scale all experts and the base by one factor"):
                    update(method, transform, low, scaled, svd)
                continue
            found = update(method, transform, low, scaled, svd)
            back = 0 if isinstance(method, ESM) and method.preset == "paper" else -power
            for name, value in wanted.items():
                off = (times(found[name], back) - value).norm() / value.norm().clamp_min(1e-30)
                assert off < NEAR[dtype], (method.describe(), transform, power, name, off)


@pytest.mark.parametrize(("dtype", "tasks"), [(torch.float32, 1), *((dtype, 3) for dtype in POWERS)])
@pytest.mark.filterwarnings("ignore")
def test_every_method(dtype: torch.dtype, tasks: int) -> None:
    check(tasks, dtype, methods(tasks))


@pytest.mark.filterwarnings("ignore")
def test_large_matrices() -> None:
    pairs = [(one, None) for one in (CART(rank_ratio=0.05), TSVM(rank_ratio=0.05), IsoC())]
    check(2, torch.float32, pairs, m=392, n=384)


@pytest.mark.parametrize("power", [-100, -60, 0, 60, 100])
def test_parts(power: int) -> None:
    """Against numpy in float64."""
    generator = torch.Generator().manual_seed(2)
    plain = torch.randn(3, 9, 7, generator=generator)
    scaled = times(plain, power)
    low = LowRank.from_dense(scaled, 5)
    u, s, v = (one.double().numpy() for one in (low.U, low.S, low.V))
    energy = (s / s.max()) ** 2
    kept = energy.sum(0).cumsum() / energy.sum()
    assert low.rank_keeping(0.8) == int((kept < 0.8).sum()) + 1
    np.testing.assert_allclose(kept_energy(low.S).numpy(), kept, atol=1e-6)
    shares = s / s.sum(1, keepdims=True)
    whole = sum(np.linalg.norm((v[i] * shares[i]).T @ (v[j] * shares[j])) for i in range(3) for j in range(3) if i != j)
    assert interference(low.S, low.V)[-1].item() == pytest.approx(whole, rel=1e-5)
    flat = scaled.double().flatten(1).numpy()
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines(torch.from_numpy(flat @ flat.T)).numpy(), unit @ unit.T, atol=1e-12)
    assert kth_largest(lambda: [scaled.flatten(1)], 5, 3, torch.float32).tolist() == [
        sorted(np.abs(row), reverse=True)[4] for row in flat
    ]
    assert independent(scaled[0]) == 7
    np.testing.assert_allclose(
        times(spectral_norms(scaled.double()), -power), np.linalg.norm(plain.double().numpy(), 2, (1, 2)), rtol=0.05
    )
    # Sums, and their gradients where those are numbers of float32.
    λ, origin, gradient = torch.tensor([0.5, -2.0, 1.0]), scaled[0], torch.randn(9, 7, generator=generator)
    delta = (u * s[:, None]) @ v.transpose(0, 2, 1)
    for sum_up, terms in (
        (lambda c: dense_sum(c, origin, scaled), scaled.double().numpy()),
        (lambda c: low_rank_sum(c, origin, low.U, low.S, low.V), delta),
    ):
        c = λ.clone().requires_grad_()
        total = sum_up(c)
        total.backward(gradient)
        right = origin.double().numpy() + np.tensordot(λ.double().numpy(), terms, 1)
        np.testing.assert_allclose(times(total.detach().double(), -power), right * 2.0**-power, atol=1e-5)
        slopes = np.tensordot(terms, gradient.double().numpy(), 2)
        np.testing.assert_allclose(times(c.grad.double(), -power), slopes * 2.0**-power, atol=1e-4)
