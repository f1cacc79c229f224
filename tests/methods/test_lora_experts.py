"""Task vectors of LoRA experts are scale · B A, in the adapters' precision, whatever the base is stored in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
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
    MergeMethod,
    RegMean,
    TaskArithmetic,
    TaskBank,
    TSVCompress,
    WeightAveraging,
    build_bank,
    merge_files,
)

MODULE, EMBEDDING, CONV = "model.layers.0.self_attn.q_proj", "model.embed_tokens", "model.conv"
SHAPES = {MODULE: (48, 32), EMBEDDING: (40, 16), CONV: (6, 4, 3, 3)}
RANKS = {"law": 2, "bio": 3, "chat": 1}
METHODS: list[MergeMethod] = [
    *(TaskArithmetic(scaling=1.0), TaskArithmetic(rank_ratio=0.5), TIES(), ConsensusTA(), WeightAveraging()),
    *(CART(rank_ratio=0.5), CART(rank_ratio=0.1), TSVM(), TSVCompress(), IsoC(), IsoCTS(), ESM(), RegMean()),
]
Weights = dict[str, Tensor]


def draw(*shape: int, size: float = 1.0) -> Tensor:
    return torch.randn(shape) * size


def make(
    folder: Path, dtype: torch.dtype, adapter: torch.dtype
) -> tuple[dict[str, str], str, dict[str, Weights], Weights]:
    """Adapters' folders and the base's file; the experts and the base that they stand for, in float64."""
    torch.manual_seed(0)
    base = {f"{module}.weight": draw(*shape, size=0.05).to(dtype) for module, shape in SHAPES.items()}
    base[f"{MODULE}.bias"] = draw(48, size=0.05).to(dtype)
    save_file(base, folder / "base.safetensors")
    wide = {name: value.double() for name, value in base.items()}
    paths, exact = {}, {}
    for task, rank in RANKS.items():
        a, b = draw(rank, 32, size=0.03).to(adapter), draw(48, rank, size=1e-2).to(adapter)
        ea, eb = draw(rank, 40, size=0.03).to(adapter), draw(16, rank, size=1e-2).to(adapter)
        ca, cb = draw(rank, 4, 3, 3, size=0.03).to(adapter), draw(6, rank, 1, 1, size=1e-2).to(adapter)
        parts = {f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b}
        parts |= {f"{EMBEDDING}.lora_embedding_A": ea, f"{EMBEDDING}.lora_embedding_B": eb}
        parts |= {f"{CONV}.lora_A.weight": ca, f"{CONV}.lora_B.weight": cb}
        config: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
        config["target_modules"] = ["q_proj", "embed_tokens", "conv"]
        (folder / task).mkdir()
        save_file(
            {f"base_model.model.{name}": value for name, value in parts.items()},
            folder / task / "adapter_model.safetensors",
        )
        (folder / task / "adapter_config.json").write_text(json.dumps(config))
        updates = {
            MODULE: b.double() @ a.double(),
            EMBEDDING: (eb.double() @ ea.double()).T,
            CONV: torch.einsum("or,rihw->oihw", cb.double().flatten(1), ca.double()),
        }
        exact[task] = wide | {f"{module}.weight": wide[f"{module}.weight"] + 2 * one for module, one in updates.items()}
        paths[task] = str(folder / task)
    return paths, str(folder / "base.safetensors"), exact, wide


def change(bank: TaskBank, base: Weights) -> Weights:
    return {name: value - base[name] for name, value in bank.merge(dtype=torch.float64).items()}


@pytest.mark.filterwarnings("ignore:.* matrices have no second moments")
@pytest.mark.parametrize("adapter", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_method_sees_the_update_itself(dtype: torch.dtype, adapter: torch.dtype, tmp_path: Path) -> None:
    """Against the same experts in float64, in which base + scale · B A rounds nothing that counts."""
    experts, file, exact, base = make(tmp_path, dtype, adapter)
    # Factors are stored as precisely as the adapters.
    tolerance = 1e-3 if adapter == torch.float32 else 2e-2
    for method in METHODS:
        bank = build_bank(experts, file, method=method)
        found, wanted = (change(one, base) for one in (bank, build_bank(exact, base, method=method)))
        for name, value in wanted.items():
            size = value.norm() if value.norm() > 1e-9 else torch.ones(())
            assert (found[name] - value).norm() <= tolerance * size, (method, name)
        merge_files(experts, tmp_path / "merged.safetensors", file, method=method, overwrite=True, dtype=torch.float32)
        for name, value in load_file(tmp_path / "merged.safetensors").items():
            off = (value.double() - base[name] - wanted[name]).norm()
            assert off <= 2e-4 * wanted[name].norm() + 1e-7 * base[name].norm(), (method, name)


def test_banks_have_the_adapters_ranks(tmp_path: Path) -> None:
    experts, file, exact, base = make(tmp_path, torch.bfloat16, torch.float32)
    most, total = max(RANKS.values()), sum(RANKS.values())
    name = f"{MODULE}.weight"
    for method in (TaskArithmetic(), TSVM(), TSVCompress(), CART(rank_ratio=1.0)):
        bank = build_bank(experts, file, method=method)
        assert bank.ranks[name] == (total if isinstance(method, CART) else most)
        bank.save(tmp_path / "bank", overwrite=True)
        bank = TaskBank.load(tmp_path / "bank")
        if isinstance(method, TSVM):
            continue
        for task, expert in exact.items():
            vector = expert[name] - base[name]
            found = bank.expert(task, torch.float64)[name] - base[name]
            assert (found - vector).norm() < 1e-4 * vector.norm()
    # The origin is the base, in its own dtype: nothing is lost by that.
    bank = build_bank(experts, file, method=TaskArithmetic())
    assert bank.origin[name].dtype == torch.bfloat16
    assert bank.merge()[name].dtype == torch.bfloat16


def test_adapters_beside_whole_experts_and_under_a_transform(tmp_path: Path) -> None:
    experts, file, exact, base = make(tmp_path, torch.float32, torch.float32)
    whole = {name: (value + 0.01 * torch.randn_like(value)).float() for name, value in base.items()}
    save_file(whole, tmp_path / "whole.safetensors")
    mixed: dict[str, Any] = experts | {"whole": str(tmp_path / "whole.safetensors")}
    doubles = exact | {"whole": {name: value.double() for name, value in whole.items()}}
    for transform in (None, AWD()):
        for method in (TaskArithmetic(), TSVM(), CART(rank_ratio=0.5)):
            if transform is not None and isinstance(method, CART):
                continue
            found = change(build_bank(mixed, file, method=method, transform=transform), base)
            wanted = change(build_bank(doubles, base, method=method, transform=transform), base)
            for name, value in wanted.items():
                assert (found[name] - value).norm() <= 1e-3 * value.norm() + 1e-6, (method, name)
