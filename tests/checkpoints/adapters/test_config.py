"""Of LoRA adapters, what is known to be right gives what peft gives; all else is refused by name."""

import copy
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

from lit_merge import MergeError
from lit_merge.checkpoints import Checkpoint, open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")
PREFIX = "base_model.model."


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6)


class Net(nn.Module):
    """Embeddings, two blocks, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 6)
        self.layer = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(6, 3)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=10))


def adapt(folder: Path, kind: Callable[[], nn.Module] = Net, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """Saves an adapter as peft does; answers the model that it is for, and its weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = kind().eval()
    pristine = copy.deepcopy(model)
    adapted = get_peft_model(
        model, LoraConfig(**{"r": 2, "lora_alpha": 5, "target_modules": ["up", "down"], **options})
    )
    for value in adapted.parameters():
        if value.requires_grad:
            value.data += 0.1 * torch.randn_like(value)
    adapted.save_pretrained(folder)
    return pristine, {name: value.clone() for name, value in pristine.state_dict().items()}


def change(folder: Path, config: dict[str, Any] | None = None, drop: str = "", **weights: Tensor) -> None:
    """Other entries of the configuration, weights without those whose names have a text, and others besides."""
    file, place = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    file.write_text(json.dumps(json.loads(file.read_text()) | (config or {})))
    kept = {name: value for name, value in load_file(place).items() if not drop or drop not in name}
    save_file(kept | {PREFIX + name: value for name, value in weights.items()}, place)


def refused(folder: Path, base: dict[str, Tensor] | Checkpoint, *said: str) -> None:
    with pytest.raises(MergeError) as caught:
        open_checkpoint(folder, base=open_checkpoint(base, "base"))
    assert "\n" not in str(caught.value)
    for text in said:
        assert text in str(caught.value)


def as_peft(folder: Path, pristine: nn.Module, base: dict[str, Tensor]) -> None:
    from peft import PeftModel

    opened = open_checkpoint(folder, base=open_checkpoint(base))
    expected = PeftModel.from_pretrained(pristine, folder).merge_and_unload().state_dict()
    assert opened.shapes.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(opened.read(name), value, rtol=0, atol=1e-6)
    assert any(not torch.equal(value, base[name]) for name, value in expected.items())


@pytest.mark.parametrize(
    "options",
    [
        *({"init_lora_weights": start} for start in (True, False, "gaussian", "eva", "orthogonal", "mica")),
        {"target_modules": "all-linear"},
        {"target_modules": r"layer\.1\..*|head", "exclude_modules": r".*norm"},
        {"layers_to_transform": [1, 3], "layers_pattern": ["h", "layer"]},
        {"layers_to_transform": 0, "layers_pattern": "layer"},
        {"exclude_modules": ["1.up"], "lora_dropout": 0.5},
        {"bias": "all", "modules_to_save": ["head"]},
        {"modules_to_save": ["head", "1"], "use_dora": True},
        {"target_modules": ["head"], "task_type": "SEQ_CLS", "modules_to_save": ["norm"]},
    ],
    ids=str,
)
def test_what_is_allowed_gives_what_peft_gives(options: dict[str, Any], tmp_path: Path) -> None:
    as_peft(tmp_path, *adapt(tmp_path, **options))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_starts_that_change_the_base(start: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    _, base = adapt(tmp_path / "plain", init_lora_weights=start)
    refused(tmp_path / "plain", base, f"init_lora_weights is '{start}'", "path_initial_model_for_weight_conversion")
    # The way out that the message names.
    torch.manual_seed(0)
    pristine = Net()
    names = ["up", "down"]
    model = get_peft_model(copy.deepcopy(pristine), LoraConfig(r=2, target_modules=names, init_lora_weights=start))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    for name, value in model.named_parameters():
        value.data += 0.1 * torch.randn_like(value) * ("lora_" in name)
    expected = {name: value.clone() for name, value in copy.deepcopy(model).merge_and_unload().state_dict().items()}
    model.save_pretrained(tmp_path / "whole", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    opened = open_checkpoint(tmp_path / "whole", base=open_checkpoint(pristine.state_dict()))
    for name, value in expected.items():
        torch.testing.assert_close(opened.read(name), value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        *(
            ({"init_lora_weights": start}, "init_lora_weights is")
            for start in ("corda", "loftq", "lora_ga", "new", [1], 3)
        ),
        *(
            ({name: value}, f"{name} is not supported")
            for name, value in {
                "trainable_token_indices": [1],
                "layer_replication": [[0, 2]],
                "megatron_config": {"a": 1},
                "arrow_config": {"top_k": 1},
                "kasa_config": {"beta": 1},
                "velora_config": {"scale": 1},
                "monteclora_config": {"num_samples": 2},
                "alora_invocation_tokens": [1],
                "use_bdlora": {"nblocks": 2},
                "ensure_weight_tying": True,
                "not_yet_invented": 0.5,
            }.items()
        ),
        ({"bias": "some"}, "bias is 'some', expected none, all or lora_only"),
        ({"use_dora": "yes"}, "use_dora is 'yes', expected true or false"),
        ({"use_dora": True}, "has no lora_magnitude_vector for layer.0.down, but use_dora is True"),
        ({"lora_bias": True}, "has no lora_B.bias for layer.0.down, but lora_bias is True"),
        ({"target_modules": 3}, "target_modules is 3, expected a list of names"),
        ({"target_modules": "("}, "no expressions"),
        ({"target_modules": ["up"]}, "adapter_config.json does not target layer.0.down"),
        ({"exclude_modules": ["1.up"]}, "does not target layer.1.up"),
        ({"layers_to_transform": [0], "layers_pattern": "layer"}, "does not target layer.1.down"),
        ({"layers_to_transform": ["0"]}, "expected numbers of layers"),
        ({"rank_pattern": [3]}, "rank_pattern is [3], expected names and their numbers"),
        ({"modules_to_save": "head"}, "modules_to_save is 'head', expected a list"),
        ({"modules_to_save": ["head"]}, "has nothing for head, which modules_to_save"),
        ({"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"}, "has nothing for classifier"),
        ({"target_modules": ["up", "down", "head"]}, "has nothing for head, which target_modules"),
    ],
    ids=str,
)
def test_configurations_that_are_not_understood(entry: dict[str, Any], said: str, tmp_path: Path) -> None:
    _, base = adapt(tmp_path)
    change(tmp_path, entry)
    refused(tmp_path, base, str(tmp_path), said)


def test_entries_that_say_nothing(tmp_path: Path) -> None:
    pristine, base = adapt(tmp_path)
    change(tmp_path, {"not_yet_invented": None, "another": [], "enable_lora": None, "merge_weights": False})
    as_peft(tmp_path, pristine, base)


A, WIDE = torch.ones(2, 6), torch.ones(8, 6)


@pytest.mark.parametrize(
    ("drop", "weights", "said"),
    [
        ("", {"layer.0.up.lora_A.default.weight": A}, "lora_A in this place"),
        ("", {"layer.0.up.lora_A": A}, "lora_A in this place"),
        ("", {"layer.0.up.lora_C.weight": A}, "lora_C in this place"),
        ("", {"layer.0.up.lora_diag": torch.ones(2)}, "lora_diag in this place"),
        ("", {"words.token_adapter.trainable_tokens_delta": A}, "token_adapter in this place"),
        ("", {"head.modules_to_save.default.weight": torch.ones(3, 6)}, "modules_to_save in this place"),
        ("", {"head.original_module.weight": torch.ones(3, 6)}, "original_module in this place"),
        ("", {"layer.0.up.weight": WIDE}, "layer.0.up has a LoRA, so that peft passes it over"),
        ("", {"head.base_layer.weight": torch.ones(3, 6)}, "head has no LoRA, so that"),
        ("", {"layer.0.up.weight_scale": torch.ones(1)}, "layer.0.up has a LoRA"),
        ("", {"head.scale": torch.ones(1)}, "the base has no such weight"),
        ("", {"prompt_embeddings": A}, "the base has no such weight"),
        (
            "",
            {"layer.0.up.lora_magnitude_vector": torch.ones(8)},
            "has lora_magnitude_vector for layer.0.up, but use_dora",
        ),
        ("", {"layer.0.up.lora_B.bias": torch.ones(8)}, "has lora_B.bias for layer.0.up, but lora_bias"),
        ("", {"layer.0.norm.lora_B.bias": torch.ones(8)}, "lacks one of the parts A and B for layer.0.norm"),
        (
            "",
            {"layer.0.up.lora_embedding_A": A, "layer.0.up.lora_embedding_B": A.T.contiguous()},
            "lacks one of the parts",
        ),
        ("", {"head.lora_A.weight": A, "head.lora_B.weight": torch.ones(3, 2)}, "does not target head"),
        ("", {"layer.0.up.lora_A.weight": A.int()}, "it is of torch.int32"),
        ("", {"layer.0.up.lora_A.weight": torch.ones(0)}, "it is [0], and A and B are matrices"),
        ("", {"layer.0.up.lora_A.weight": torch.ones(())}, "it is [], and A and B are matrices"),
        ("", {"head.bias": torch.ones(3).int()}, "it is torch.int32, and head.bias of base is torch.float32"),
        ("layer.1.up", {}, "has nothing for layer.1.up, which target_modules of adapter_config.json names"),
        ("lora_B.weight", {}, "lacks one of the parts"),
    ],
    ids=str,
)
def test_weights_that_are_not_understood(drop: str, weights: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    _, base = adapt(tmp_path)
    change(tmp_path, drop=drop, **weights)
    refused(tmp_path, base, str(tmp_path), said)


def test_incomplete_files(tmp_path: Path) -> None:
    _, base = adapt(tmp_path / "saved", modules_to_save=["head"])
    change(tmp_path / "saved", drop="head.bias")
    refused(tmp_path / "saved", base, "has nothing for head.bias, which modules_to_save")
    change(tmp_path / "saved", drop="head")
    refused(tmp_path / "saved", base, "has nothing for head, which modules_to_save")
    change(tmp_path / "saved", {"modules_to_save": None, "target_modules": "all-linear"}, "layer.0")
    refused(tmp_path / "saved", base, "has nothing for layer.0.up, which target_modules")
    # A new head beside an old one that the adapter's model has not.
    adapt(tmp_path / "new", modules_to_save=["head"])
    old = {name: value for name, value in base.items() if "head" not in name} | {"old.up.weight": WIDE}
    assert "head.weight" in open_checkpoint(tmp_path / "new", base=open_checkpoint(old)).shapes
    change(tmp_path / "new", {"lora_bias": True}, **{f"layer.{i}.up.lora_B.bias": torch.ones(1) for i in (0, 1)})
    change(tmp_path / "new", {"target_modules": ["up"]}, drop="down")
    refused(tmp_path / "new", base, "layer.0.up.bias is [8] there and [1] here")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int64])
def test_nothing_is_added_to_what_has_no_point(dtype: torch.dtype, tmp_path: Path) -> None:
    _, base = adapt(tmp_path, modules_to_save=["head"])
    refused(tmp_path, base | {"layer.0.up.weight": torch.ones(8, 6, dtype=dtype)}, "layer.0.up.weight", f"is {dtype}")
    refused(tmp_path, base | {"head.weight": torch.ones(3, 6, dtype=dtype)}, "head.weight", f"is {dtype}")


def test_tied_embeddings(tmp_path: Path) -> None:
    pristine, base = adapt(tmp_path / "lora", gpt2, target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    said = "transformer.wte.weight, which is lm_head.weight of its base too"
    refused(tmp_path / "lora", base, said)
    torch.save(pristine.state_dict(), tmp_path / "base.pt")
    refused(tmp_path / "lora", open_checkpoint(tmp_path / "base.pt"), said)
    # Of a file without the second name, both are changed, as by peft's merge.
    opened = open_checkpoint(
        tmp_path / "lora", base=open_checkpoint({n: v for n, v in base.items() if n != "lm_head.weight"})
    )
    from peft import PeftModel

    expected = PeftModel.from_pretrained(copy.deepcopy(pristine), tmp_path / "lora").merge_and_unload().state_dict()
    for name in ("transformer.wte.weight", "lm_head.weight"):
        torch.testing.assert_close(opened.read("transformer.wte.weight"), expected[name], rtol=0, atol=1e-6)
    # peft's merge unties a whole matrix of embeddings.
    pristine.save_pretrained(tmp_path / "base")
    adapt(tmp_path / "saved", gpt2, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["wte"])
    refused(tmp_path / "saved", open_checkpoint(tmp_path / "base"), "wte.weight, which is the output layer of its base")


def test_square_weights_of_mixed_layers(tmp_path: Path) -> None:
    """peft keeps `fan_in_fan_out` of the last layer, here the head's, and reads it of none."""
    _, base = adapt(tmp_path, gpt2, target_modules=["attn.c_proj", "lm_head"], fan_in_fan_out=True)
    refused(tmp_path, base, "fan_in_fan_out is False", "next to transformer.h.0.attn.c_proj")
