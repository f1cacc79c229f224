"""How long the functions take in which merging and adapting spend their time. No part of the tests:

    pip install -e '.[bench]'
    OMP_NUM_THREADS=1 python -m pytest benchmarks --benchmark-save=before
    OMP_NUM_THREADS=1 python -m pytest benchmarks --benchmark-compare --benchmark-compare-fail=min:30%

The last compares with what was saved last, on the same machine, and fails where something is slower by 30 %.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_merge import CART, TIES, Experts, MergeMethod, OpenClipImageEncoder, TaskArithmetic, TaskBank, build_bank
from lit_merge.bank.linalg import polar_factor, truncated_svd
from lit_merge.choose.activations import input_moments
from lit_merge.experts.inner_products import gram_matrices

TASKS, WIDTH = 4, 384
NETWORK = {"embed_dim": 64, "vision_cfg": {"image_size": 64, "layers": 2, "width": WIDTH, "patch_size": 16}}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """As the figures of another number of threads would compare with nothing."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, four experts, heads and the configuration of an image tower of two blocks."""
    from open_clip.model import _build_vision_tower

    root = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    base = {k: v.clone() for k, v in _build_vision_tower(64, NETWORK["vision_cfg"], False).state_dict().items()}
    save_file(base, root / "base.safetensors")
    for t in range(TASKS):
        save_file({k: v + 0.01 * torch.randn_like(v) for k, v in base.items()}, root / f"task{t}.safetensors")
    save_file({f"task{t}": torch.randn(10, 64) for t in range(TASKS)}, root / "heads.safetensors")
    (root / "network.json").write_text(json.dumps(NETWORK))
    return root


@pytest.fixture(scope="session")
def experts(folder: Path) -> Experts:
    files = {f"task{t}": folder / f"task{t}.safetensors" for t in range(TASKS)}
    return Experts(files, folder / "base.safetensors")


@pytest.fixture(
    scope="session", params=[TaskArithmetic(0.3), CART(rank_ratio=0.08, scaling=0.3)], ids=["dense", "cart"]
)
def bank(request: pytest.FixtureRequest, experts: Experts) -> TaskBank:
    method: MergeMethod = request.param
    return build_bank(experts, method=method)


def matrices(m: int, n: int) -> Tensor:
    """TASKS matrices with a spectrum that falls as a fine-tuned model's."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(TASKS, m, m, generator=generator), torch.randn(TASKS, m, n, generator=generator)
    return left * torch.arange(1, m + 1) ** -0.5 @ right


@pytest.mark.parametrize("n", [WIDTH, 4 * WIDTH])
def test_truncated_svd(benchmark: Any, n: int) -> None:
    u, _, _ = benchmark(truncated_svd, matrices(WIDTH, n), int(0.08 * WIDTH))
    assert u.shape == (TASKS, WIDTH, 30)


@pytest.mark.parametrize("n", [WIDTH, 4 * WIDTH])
def test_polar_factor(benchmark: Any, n: int) -> None:
    factor = benchmark(polar_factor, matrices(WIDTH, n))
    torch.testing.assert_close(factor @ factor.mT, torch.eye(WIDTH).expand(TASKS, -1, -1), rtol=0, atol=1e-3)


def test_merge(benchmark: Any, bank: TaskBank) -> None:
    assert benchmark(bank.merge).keys() == bank.origin.keys()


def test_merge_backward(benchmark: Any, bank: TaskBank) -> None:
    coefficients = bank.coefficients.clone().requires_grad_()
    weights = list(bank.merge(coefficients).values())
    gradients = [torch.ones_like(weight) for weight in weights]
    (found,) = benchmark(lambda: torch.autograd.grad(weights, coefficients, gradients, retain_graph=True))
    assert found.abs().min() > 0


def test_ties_threshold(benchmark: Any, experts: Experts) -> None:
    """The whole method, of which the thresholds of its statistics pass are the larger part."""
    bank = benchmark(lambda: build_bank(experts, method=TIES()))
    assert bank.tasks == experts.tasks


def test_awd_gram(benchmark: Any, experts: Experts) -> None:
    names, grams = benchmark(gram_matrices, experts)
    assert grams.shape == (len(names), TASKS, TASKS)


def test_second_moments(benchmark: Any, experts: Experts, folder: Path) -> None:
    network = OpenClipImageEncoder(str(folder / "network.json"), str(folder / "heads.safetensors"))
    weights = {name: experts.checkpoints["task0"].read(name) for name in experts.shapes}
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    found = benchmark(lambda: input_moments(network, weights, iter([images])))
    assert len(found) >= 8
