"""Large matrices take shortcuts: what they change of a merge, on spectra like fine-tuning's."""

import warnings

import pytest
import torch
from torch import Tensor

from lit_merge import CART, ESM, TSVM, Experts, IsoC, IsoCTS, MergeMethod, TSVCompress, build_bank
from lit_merge.linalg import LARGE, exact_decompositions
from lit_merge.methods import merge_stream
from tests.spectra import SPECTRA, with_spectrum

SHAPES = {"h.0.attn.q.weight": (LARGE, LARGE), "h.0.mlp.fc1.weight": (2 * LARGE, LARGE)}
METHODS = [
    CART(0.08, 2.0),
    CART(0.32, 2.0),
    TSVM(),
    TSVCompress(),
    IsoC(),
    IsoCTS(),
    ESM(preset="paper"),
]
# A task vector is some per cent of its weight.
RELATIVE = 0.03


def models(tasks: int = 3) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A base, and experts whose task vectors have the slower spectrum and some directions in common."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    experts: dict[str, dict[str, Tensor]] = {}
    for t in range(tasks):
        experts[f"t{t}"] = {}
        for name, weight in base.items():
            own = with_spectrum(SHAPES[name], SPECTRA["power"], seed=t)
            shared = with_spectrum(SHAPES[name], SPECTRA["power"], seed=99)
            vector = own + 0.3 * shared
            experts[f"t{t}"][name] = weight + RELATIVE * weight.norm() / vector.norm() * vector
    return base, experts


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_merged_weights_are_the_exact_ones_to_a_thousandth(method: MergeMethod) -> None:
    base, experts = models()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ESM: .* no second moments")
        found = build_bank(experts, base, method=method).merge()
        with exact_decompositions():
            exact = build_bank(experts, base, method=method).merge()
    different = 0
    for name, weight in exact.items():
        assert (found[name] - weight).norm() <= 1e-3 * weight.norm(), name
        different += not torch.equal(found[name], weight)
    # The shortcuts were taken, but for methods that want every direction, or work in float64.
    assert different == (0 if isinstance(method, IsoC | ESM) else len(SHAPES))


def test_svd_exact_takes_no_shortcut() -> None:
    base, experts = models()
    with exact_decompositions():
        exact = build_bank(experts, base, method=CART(0.08, 2.0)).merge()
    asked = build_bank(experts, base, method=CART(0.08, 2.0), svd="exact").merge()
    streamed = dict(merge_stream(Experts(experts), CART(0.08, 2.0), svd="exact"))
    found = build_bank(experts, base, method=CART(0.08, 2.0)).merge()
    for name in exact:
        assert torch.equal(asked[name], exact[name])
        assert torch.equal(streamed[name], exact[name])
        assert not torch.equal(found[name], exact[name])
