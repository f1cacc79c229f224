"""Large matrices take shortcuts: what they change of a merge, on spectra like fine-tuning's."""

import warnings
from functools import cache
from inspect import isabstract

import pytest
import torch
from torch import Tensor

import lit_merge.methods
from lit_merge import (
    CART,
    ESM,
    TIES,
    TSVM,
    ConsensusTA,
    Experts,
    IsoC,
    IsoCTS,
    MergeMethod,
    RegMean,
    TaskArithmetic,
    TSVCompress,
    WeightAveraging,
    build_bank,
)
from lit_merge.bank.linalg import LARGE
from lit_merge.merge.job import Job
from tests.spectra import SPECTRA, with_spectrum

SHAPES = {"h.0.attn.q.weight": (LARGE, LARGE), "h.0.mlp.fc1.weight": (2 * LARGE, LARGE)}
# Those that decompose in float32, and those that decompose nothing, or in float64.
SHORT = [CART(0.08, 2.0), CART(0.32, 2.0), TSVM(), TSVCompress(), IsoC(), IsoCTS(), TaskArithmetic(rank_ratio=0.2)]
WHOLE = [ESM(preset="paper"), RegMean(), TIES(), TaskArithmetic(), ConsensusTA(), WeightAveraging()]
# A task vector is some per cent of its weight.
RELATIVE = 0.03


def models() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A base, and experts whose task vectors have the slower spectrum and some directions in common."""
    base, experts = drawn()
    return dict(base), {task: dict(expert) for task, expert in experts.items()}


@cache
def drawn() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    experts: dict[str, dict[str, Tensor]] = {}
    for t in range(3):
        experts[f"t{t}"] = {}
        for name, weight in base.items():
            own = with_spectrum(SHAPES[name], SPECTRA["power"], seed=t)
            shared = with_spectrum(SHAPES[name], SPECTRA["power"], seed=99)
            vector = own + 0.3 * shared
            experts[f"t{t}"][name] = weight + RELATIVE * weight.norm() / vector.norm() * vector
    return base, experts


@pytest.mark.parametrize("method", [*SHORT, *WHOLE], ids=lambda method: type(method).__name__)
def test_merged_weights_are_the_exact_ones_to_a_thousandth(method: MergeMethod) -> None:
    base, experts = models()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* no second moments")
        found = build_bank(experts, base, method=method).merge()
        exact = build_bank(experts, base, method=method, svd="exact").merge()
    different = 0
    for name, weight in exact.items():
        assert (found[name] - weight).norm() <= 1e-3 * weight.norm(), name
        different += not torch.equal(found[name], weight)
    assert different == (len(SHAPES) if method in SHORT else 0)


def test_every_method_is_among_them() -> None:
    exported = set(filter(callable, vars(lit_merge.methods).values()))
    known = {one for one in exported if isinstance(one, type) and issubclass(one, MergeMethod) and not isabstract(one)}
    assert known == {type(method) for method in (*SHORT, *WHOLE)}


def streamed(job: Job) -> dict[str, torch.Tensor]:
    """Merged as files are: weight by weight, without a bank."""
    return {part.name: job.merged(part) for part in job.parts(None, factors=False)}


@pytest.mark.parametrize("method", [IsoC(1.5), CART(0.08, 2.0)])
def test_streams_that_need_no_factors(method: MergeMethod) -> None:
    base, experts = models()
    bank = build_bank(experts, base, method=method).merge()
    for name, weight in streamed(Job.open(Experts(experts, base), method, None, None, "auto")).items():
        assert (weight - bank[name]).norm() <= 1e-4 * weight.norm()


@pytest.mark.parametrize("method", SHORT, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("what", ["identical", "unchanged", "few directions"])
def test_experts_out_of_the_ordinary(method: MergeMethod, what: str) -> None:
    """Two that are the same, one that equals the base, all with task vectors of rank 8."""
    whole, several = models()
    name = next(iter(SHAPES))  # of one shape: what shapes do is tested above
    base, experts = {name: whole[name]}, {task: {name: expert[name]} for task, expert in several.items()}
    if what == "identical":
        experts["t1"] = experts["t0"]
    elif what == "unchanged":
        experts["t1"] = base
    else:
        for expert in experts.values():
            for name, weight in base.items():
                left, right = (
                    torch.randn(side, 8, generator=torch.Generator().manual_seed(1)) for side in weight.shape
                )
                expert[name] = weight + 1e-2 * left @ right.T
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the expert.* (are identical|is the base)")
        found = build_bank(experts, base, method=method).merge()
        exact = build_bank(experts, base, method=method, svd="exact").merge()
    for name, weight in exact.items():
        assert found[name].isfinite().all()
        # Directions that no matrix has, or that two share, are filled up by any: methods that whiten show them.
        taken = isinstance(method, TSVM | IsoCTS)
        taken |= what == "few directions" and isinstance(method, IsoC)
        assert (found[name] - weight).norm() <= (0.3 if taken else 1e-3) * weight.norm(), name


def test_svd_exact_takes_no_shortcut() -> None:
    base, experts = models()
    # In float64 nothing is.
    double = {task: {name: value.double() for name, value in expert.items()} for task, expert in experts.items()}
    exact = build_bank(double, method=CART(0.08, 2.0)).merge()
    asked = build_bank(experts, base, method=CART(0.08, 2.0), svd="exact").merge()
    one_by_one = streamed(Job.open(Experts(experts), CART(0.08, 2.0), None, None, "exact"))
    found = build_bank(experts, base, method=CART(0.08, 2.0)).merge()
    for name, weight in exact.items():
        assert (asked[name] - weight).norm() < 1e-6 * weight.norm() < (found[name] - weight).norm()
        assert torch.equal(one_by_one[name], asked[name])
