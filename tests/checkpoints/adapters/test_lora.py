"""PEFT LoRA folders give what peft's own merge gives, exactly."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_merge import Experts, MergeError, WeightAveraging, build_bank
from lit_merge.checkpoints import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return BertForSequenceClassification(BertConfig(**sizes))


def gpt2() -> nn.Module:
    """Weights of its linear layers are stored as (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=10))


class Patches(nn.Module):
    """A convolution and a fused attention, as a tower of open_clip has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, bias=False)
        self.pointwise = nn.Conv2d(4, 4, 1)
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.names = nn.Embedding(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pointwise(self.conv(x)).flatten(2).mT
        return self.attn(y, y, y)[0] + self.names(torch.tensor(0))


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (bert, {"target_modules": ["query", "value"]}),
    "patterns": (
        bert,
        {
            "target_modules": ["query", "value", "dense"],
            "rank_pattern": {"query": 3, r"layer\.1\.output\.dense": 1},
            "alpha_pattern": {"value": 7, "layer.0.intermediate.dense": 2},
        },
    ),
    "rslora": (bert, {"target_modules": ["query"], "use_rslora": True}),
    "modules to save": (bert, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "all biases": (bert, {"target_modules": ["query"], "bias": "all"}),
    "biases of lora": (bert, {"target_modules": ["query"], "bias": "lora_only"}),
    "bias of B": (bert, {"target_modules": ["query"], "lora_bias": True}),
    "embedding": (bert, {"target_modules": ["word_embeddings", "query"]}),
    "dora": (bert, {"target_modules": ["query", "dense"], "use_dora": True}),
    "transposed": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "transposed dora": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "convolutions": (Patches, {"target_modules": ["conv", "pointwise"]}),
}
FUSED = {"fused attention": (Patches, {"target_modules": ["attn"]})}


def make(case: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], Path]:
    """A base, what peft merges into it, and the folder that peft saved."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    kind, options = (CASES | FUSED)[case]
    model = kind().eval()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(**{"r": 2, "lora_alpha": 5, **options}))
    for name, value in adapted.named_parameters():
        if value.requires_grad and "magnitude" not in name:
            value.data += torch.randn_like(value)
        elif value.requires_grad:
            value.data *= 1 + torch.rand_like(value)
    adapted.save_pretrained(folder)
    merged = {name: value.clone() for name, value in adapted.merge_and_unload().state_dict().items()}
    return base, merged, folder


@pytest.mark.parametrize("case", CASES)
def test_equals_merge_and_unload(case: str, tmp_path: Path) -> None:
    base, merged, folder = make(case, tmp_path / "lora")
    opened = open_checkpoint(folder, base=open_checkpoint(base))
    assert opened.shapes.keys() == merged.keys()
    changed = 0
    for name, value in merged.items():
        found = opened.read(name)
        assert (found.dtype, found.shape) == (opened.dtypes[name], torch.Size(opened.shapes[name]))
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6)
        changed += not torch.equal(value, base[name])
    assert changed


def test_adapters_saved_by_torch_and_bases_in_half_precision(tmp_path: Path) -> None:
    base, merged, folder = make("plain", tmp_path / "lora")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    opened = open_checkpoint(folder, base=open_checkpoint({name: value.bfloat16() for name, value in base.items()}))
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert opened.read(name).dtype == torch.bfloat16
    torch.testing.assert_close(opened.read(name).float(), merged[name], rtol=0, atol=0.05)


def test_as_experts(tmp_path: Path) -> None:
    base, merged, folder = make("plain", tmp_path / "lora")
    save_file({name: value.clone().contiguous() for name, value in base.items()}, tmp_path / "base.safetensors")
    sources = {"one": folder, "two": tmp_path / "base.safetensors"}
    before = Experts(sources, tmp_path / "base.safetensors").identity
    mean = build_bank({"one": folder, "two": base}, base, method=WeightAveraging()).merge()
    for name, value in mean.items():
        torch.testing.assert_close(value, (merged[name] + base[name]) / 2, rtol=0, atol=1e-6)
    os.utime(folder / "adapter_config.json", (1, 1))
    assert Experts(sources, tmp_path / "base.safetensors").identity != before
    with pytest.raises(MergeError, match=r"expert one: .*lora is a LoRA adapter: give the model .*--model\.base"):
        Experts({"one": folder})
    with pytest.raises(MergeError, match="is a LoRA adapter: give the model"):
        Experts({"one": base}, folder)


def refused(folder: Path, base: dict[str, Tensor], *said: str) -> None:
    with pytest.raises(MergeError) as caught:
        open_checkpoint(folder, base=open_checkpoint(base, "base"))
    assert "\n" not in str(caught.value)
    for text in (str(folder), *said):
        assert text in str(caught.value)


def test_adapters_of_another_base(tmp_path: Path) -> None:
    base, _, folder = make("modules to save", tmp_path / "lora")
    name = "bert.encoder.layer.1.attention.self.query.weight"
    shallow = {key: value for key, value in base.items() if "layer.1" not in key}
    refused(folder, shallow, "is a LoRA of another base than base", f"that has no {name}", "as base (--model.base)")
    refused(folder, base | {name: torch.ones(8, 9)}, "of another base", f"{name} is [8, 9] there", "[8, 8]")
    refused(folder, base | {"classifier.weight": torch.ones(3, 8)}, "classifier.weight is [3, 8] there and [2, 8]")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"peft_type": None}, "peft_type is None"),
        ({"r": 4}, "has rank 4; the adapter's weights have 2"),
        ({"r": "two"}, "has rank two"),
        ({"lora_alpha": "much"}, "no ranks and alphas can be read"),
        ({"lora_alpha": True}, "no ranks and alphas can be read"),
        ({"rank_pattern": {"(": 1}}, "no ranks and alphas can be read"),
        ({"target_parameters": ["experts"]}, "target_parameters is not supported"),
        ({"use_qalora": True}, "merge_and_unload"),
    ],
)
def test_configurations(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    base, _, folder = make("plain", tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    refused(folder, base, "adapter_config.json", said)


def test_fused_attention_is_left_to_peft(tmp_path: Path) -> None:
    base, _, folder = make("fused attention", tmp_path / "lora")
    refused(folder, base, "attn is an nn.MultiheadAttention", "merge_and_unload")


def test_broken_folders(tmp_path: Path) -> None:
    base, _, folder = make("plain", tmp_path / "lora")
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    content, weights, text = file.read_bytes(), load_file(file), config.read_text()
    file.write_bytes(content[:-4])
    refused(folder, base, "cut short")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    file.write_text(pointer)
    refused(folder, base, "Git LFS")
    save_file({"query.lora_A.weight": torch.ones(2, 8)}, file)
    refused(folder, base, "query.lora_A.weight is no weight of peft's")
    half = {name: value for name, value in weights.items() if "layer.0.attention.self.query.lora_B" not in name}
    save_file(half, file)
    refused(folder, base, "lacks one of the parts A and B for bert.encoder.layer.0.attention.self.query")
    file.unlink()
    refused(folder, base, "holds no weights: expected one of adapter_model.safetensors, adapter_model.bin")
    file.write_bytes(content)
    for broken in (pointer, "{", "[]", ""):
        config.write_text(broken)
        refused(folder, base, "adapter_config.json")
    config.write_text(text)
    open_checkpoint(folder, base=open_checkpoint(base))
