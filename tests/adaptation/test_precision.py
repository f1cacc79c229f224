"""Fits in every precision: as in float64 with torch alone, or refused in one line."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from open_clip.model import _build_vision_tower
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lit_merge import (
    CART,
    AdaRank,
    CollapseGuard,
    Experts,
    HuggingFaceTextEncoder,
    MergedModel,
    MergeError,
    MergeWarning,
    OnlineScores,
    Stage,
    TaskArithmetic,
    TextFiles,
    adapt,
    build_bank,
    evaluate,
)
from lit_merge.adaptation.run import run_fit
from lit_merge.objectives import ExpertAgreement

STEPS, LR, START = 3, 0.05, 0.3


@pytest.fixture(scope="module")
def doubles(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    """Experts and base in float64, whose digits float32 does not hold."""
    root, files = tmp_path_factory.mktemp("doubles"), {"base": tiny.base, **tiny.experts}
    generator = torch.Generator().manual_seed(0)
    for name, path in files.items():
        wide = {key: value.double() for key, value in load_file(path).items()}
        # What all of them have in common stays so.
        drawn = {k: torch.randn(v.shape, dtype=v.dtype, generator=generator) * v.std().gt(0) for k, v in wide.items()}
        save_file({k: v * (1 + 1e-9 * drawn[k]) for k, v in wide.items()}, root / f"{name}.safetensors")
    return {task: str(root / f"{task}.safetensors") for task in tiny.tasks}, str(root / "base.safetensors")


class Seen(Callback):
    def __init__(self) -> None:
        self.batches: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(copy.deepcopy(batch))


def by_hand(tiny: Any, experts: dict[str, str], base: str, batches: list[Any], dtype: torch.dtype) -> torch.Tensor:
    """Coefficients (T, L) after Adam's steps on the mean entropy, by torch alone."""
    network = tiny.encoder()
    tower = _build_vision_tower(
        16, {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0}, False
    ).to(dtype)
    start = {name: value.to(dtype) for name, value in load_file(base).items()}
    own = [{name: value.to(dtype) for name, value in load_file(path).items()} for path in experts.values()]
    heads = {task: rows.to(dtype) for task, rows in load_file(tiny.heads).items()}
    names = sorted(start)
    learnt = torch.full((len(own), len(names)), START, dtype=dtype, requires_grad=True)
    adam = torch.optim.Adam([learnt], lr=LR)
    for batch in batches:
        weights = {
            name: start[name] + sum(learnt[t, i] * (one[name] - start[name]) for t, one in enumerate(own))
            for i, name in enumerate(names)
        }
        losses = []
        for task, images in batch.items():
            pixels = (images.to(dtype)[:, None].expand(-1, 3, -1, -1) / 255 - network.mean) / network.std
            features = torch.func.functional_call(tower, weights, (pixels,))
            p = (16 * F.normalize(features, dim=-1) @ heads[task].T).softmax(-1)
            losses.append(-(p * p.log()).sum(-1).mean())
        adam.zero_grad()
        torch.stack(losses).mean().backward()
        adam.step()
    return learnt.detach()


@pytest.mark.parametrize("microbatch", ["all", "task"])
@pytest.mark.parametrize(("wide", "precision"), [(True, "32-true"), (True, "64-true"), (False, "64-true")])
def test_steps_in_float64(
    wide: bool, precision: Any, microbatch: Any, tiny: Any, doubles: Any, make_trainer: Callable[..., Any]
) -> None:
    experts, base = doubles if wide else (tiny.experts, tiny.base)
    bank = build_bank(experts, base, method=TaskArithmetic(START))
    model = MergedModel(bank, tiny.encoder(), stages=[Stage("layer", STEPS, LR)], microbatch=microbatch)
    seen = Seen()
    make_trainer(max_steps=STEPS, precision=precision, callbacks=[seen]).fit(model, datamodule=tiny.data())
    right = by_hand(tiny, experts, base, seen.batches, torch.float64)
    assert model.compute_dtype == torch.float64
    order = [sorted(load_file(base)).index(name) for name in bank.layers]
    # With 32-true the pixels are rounded, and of experts in float32 the deltas.
    found = model.coefficients().detach()
    assert found.dtype == (torch.float64 if wide or precision == "64-true" else torch.float32)
    torch.testing.assert_close(
        found.double(), right[:, order], rtol=0, atol=1e-9 if wide and precision == "64-true" else 1e-6
    )
    # The bank is as it was stored.
    after = model.to_bank()
    assert {name: value.dtype for name, value in after.tensors().items()} == {
        name: value.dtype for name, value in bank.tensors().items()
    }
    assert all(torch.equal(after.origin[name], value) for name, value in bank.origin.items())


OPTIONS: list[dict[str, Any]] = [
    {"sharpness": 0.01},
    {"ranks": AdaRank(0.5)},
    {"ranks": AdaRank(0.5), "microbatch": "task", "gradient_checkpointing": True},
    {"objective": ExpertAgreement()},
    {"bank_device": "cpu"},
    {"bounds": (0.0, 1.0)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
def test_whatever_is_learnt_is_that_of_float32(
    options: dict[str, Any], tiny: Any, doubles: Any, make_trainer: Callable[..., Any]
) -> None:
    found = []
    for (experts, base), precision in (
        ((tiny.experts, tiny.base), "32-true"),
        (doubles, "32-true"),
        ((tiny.experts, tiny.base), "64-true"),
    ):
        opened = Experts(experts, base)
        bank = build_bank(opened, method=TaskArithmetic(START, 1.0))
        model = MergedModel(
            bank, tiny.encoder(), stages=[Stage("tied", 2, LR), Stage("layer", 1, LR)], experts=opened, **options
        )
        guard = CollapseGuard(every_n_steps=2, images=4, restore=False)
        trainer = make_trainer(max_steps=3, precision=precision, callbacks=[guard])
        trainer.fit(model, datamodule=tiny.data())
        trainer.test(model, datamodule=tiny.data(), verbose=False)
        found.append((model.coefficients().detach().double(), [model.scores[t].entropy for t in tiny.tasks]))
    for coefficients, entropies in found[1:]:
        torch.testing.assert_close(coefficients, found[0][0], rtol=1e-4, atol=1e-4)
        assert entropies == pytest.approx(found[0][1], rel=1e-4)


def test_a_run_and_its_scores(tiny: Any, doubles: Any, make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    found = []
    for name, paths, precision in (
        ("single", (tiny.experts, tiny.base), "32-true"),
        ("double", doubles, "64-true"),
    ):
        opened = Experts(*paths)
        bank = build_bank(opened, method=TaskArithmetic(START))
        model = MergedModel(bank, tiny.encoder(), stages=[Stage("tied", 2, LR)], experts=opened)
        trainer = make_trainer(max_steps=2, precision=precision, callbacks=[OnlineScores()])
        with pytest.warns(MergeWarning, match="the fit ended before the stream"):
            found.append(run_fit(trainer, model, tiny.data(protocol="online"), tmp_path / name, opened))
    for report in found[1:]:
        for state in ("pretrained", "static", "online", "adapted", "expert"):
            for task in tiny.tasks:
                right, one = found[0].scores[state][task], report.scores[state][task]
                assert one.accuracy == right.accuracy
                assert one.entropy == pytest.approx(right.entropy, rel=1e-4, nan_ok=True)


def test_python_calls(tiny: Any, doubles: Any) -> None:
    bank = build_bank(doubles[0], doubles[1], method=TaskArithmetic(START))
    options = {"stages": [Stage("tied", 2, LR)], "accelerator": "cpu", "progress": False}
    first, second = (
        adapt(bank, tiny.encoder(), tiny.data(), precision=precision, **options) for precision in ("32-true", "64-true")
    )
    assert torch.allclose(first.coefficients, second.coefficients, rtol=0, atol=1e-6)
    scores = evaluate(first, tiny.encoder(), tiny.data(), accelerator="cpu")
    merged = first.merge()
    assert scores == evaluate(merged, tiny.encoder(), tiny.data(), accelerator="cpu")
    # Weights of several precisions are run in the widest.
    mixed = {name: v.bfloat16() if "mlp" in name else v for name, v in merged.items()}
    rounded = {name: v.to(torch.bfloat16).double() if "mlp" in name else v for name, v in merged.items()}
    assert evaluate(mixed, tiny.encoder(), tiny.data(), accelerator="cpu") == evaluate(
        rounded, tiny.encoder(), tiny.data(), accelerator="cpu"
    )
    half = {name: v.bfloat16() for name, v in merged.items()}
    assert evaluate(half, tiny.encoder(), tiny.data(), accelerator="cpu") == evaluate(
        {name: v.float() for name, v in half.items()}, tiny.encoder(), tiny.data(), accelerator="cpu"
    )


@pytest.mark.parametrize("heads", ["classifiers", "linear", "cosine"])
def test_texts(heads: str, texts: Any, make_trainer: Callable[..., Any], tmp_path: Path) -> None:
    wide = {}
    for task, folder in texts.experts("bert").items():
        wide[task] = str(tmp_path / f"{task}.safetensors")
        save_file(
            {
                k: v.double() if v.is_floating_point() else v
                for k, v in load_file(f"{folder}/model.safetensors").items()
            },
            wide[task],
        )
    given, pooling = None, None
    if heads != "classifiers":
        width, generator = 32, torch.Generator().manual_seed(0)
        width = load_file(f"{texts.folder('bert')}/model.safetensors")["embeddings.LayerNorm.weight"].shape[0]
        rows = {t: torch.randn(n, width, generator=generator) for t, n in (("ham", 2), ("mood", 3), ("topic", 4))}
        given, pooling = str(tmp_path / "heads.safetensors"), "mean"
        save_file({f"{t}.weight" if heads == "linear" else t: v for t, v in rows.items()}, given)
    found = []
    for experts, precision in (
        (texts.experts("bert"), "32-true"),
        (wide, "32-true"),
        (wide, "64-true"),
        (texts.experts("bert"), "64-true"),
    ):
        network = HuggingFaceTextEncoder(texts.folder("bert"), given, pooling)
        opened = Experts(experts, exclude=["classifier.*"] if given is None else ["classifier.*", "bert.pooler.*"])
        network.take_heads(opened.whole)
        data = TextFiles(texts.tables("adapt"), texts.folder("bert"), test=texts.tables("test"), batch_size=4)
        model = MergedModel(build_bank(opened, method=CART(0.5, 1.0)), network, stages=[Stage("task", 2, LR)])
        trainer = make_trainer(max_steps=2, precision=precision)
        trainer.fit(model, datamodule=data)
        trainer.test(model, datamodule=data, verbose=False)
        found.append((model.coefficients().detach().double(), [model.scores[t].entropy for t in texts.tasks]))
    for coefficients, entropies in found[1:]:
        torch.testing.assert_close(coefficients, found[0][0], rtol=1e-4, atol=1e-4)
        assert entropies == pytest.approx(found[0][1], rel=1e-4)


def test_mixed_precision_of_float64_is_refused(tiny: Any, doubles: Any, make_trainer: Callable[..., Any]) -> None:
    precision: Any = "bf16-mixed"
    model = MergedModel(build_bank(*doubles, method=TaskArithmetic(START)), tiny.encoder())
    with pytest.raises(MergeError, match=f"precision={precision} does not go with experts in float64: use 32-true"):
        make_trainer(max_steps=1, precision=precision).fit(model, datamodule=tiny.data())
    with pytest.raises(MergeError, match="does not go with experts in float64"):
        make_trainer(precision=precision).test(model, datamodule=tiny.data())
