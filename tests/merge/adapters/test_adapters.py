"""Adapters that PEFT loads onto their base give the outputs of the bank's weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from lit_merge import CART, MergeError, TaskArithmetic, TaskBank, build_bank
from lit_merge.cli.main import main

# Of peft and transformers, about each other.
pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TASKS = ("one", "two", "three")


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=30, **SIZES))


def roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(vocab_size=30, **SIZES))


def clip() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=8, **SIZES))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(vocab_size=30, **SIZES))


def gpt2() -> nn.Module:
    """Its linear layers store (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=12))


MODELS: dict[str, Callable[[], Any]] = {"bert": bert, "roberta": roberta, "clip": clip, "llama": llama, "gpt2": gpt2}


def moved(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=generator)


def save_models(root: Path, make: Callable[[], Any]) -> Any:
    """`base`, and an expert per task in `experts`, which differ in every weight; answers the base."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    moved(model, 1)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(root / "base")
    for i, task in enumerate(TASKS):
        moved(model, 2 + i)
        model.save_pretrained(root / "experts" / task)
        model.load_state_dict(start)
    return model


def inputs_of(model: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    if "Vision" in type(model).__name__:
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    return {"input_ids": torch.randint(3, 30, (2, 7), generator=generator)}


def first_output(model: Any, weights: dict[str, Tensor] | None = None) -> Tensor:
    """Of the model, or with other weights: of the state dict that these are."""
    inputs = inputs_of(model.get_base_model() if hasattr(model, "get_base_model") else model)
    with torch.no_grad():
        found = model(**inputs) if weights is None else functional_call(model, weights, (), inputs)
    return found[0]


def export(bank: TaskBank, root: Path, *options: str) -> tuple[int, Path]:
    if not (root / "bank").exists():
        bank.save(root / "bank")
    output = root / f"out{len(list(root.glob('out*')))}"
    arguments = ["--model.bank", f"{root}/bank", "--format", "lora", "--output", str(output), *options]
    return main(["export", *arguments]), output


def on_base(model: Any, base: Path, adapter: Path) -> Any:
    """The adapter on its base, by PEFT alone."""
    from peft import PeftModel

    return PeftModel.from_pretrained(type(model).from_pretrained(base), adapter).eval()


@pytest.mark.parametrize("kind", MODELS)
def test_every_task_is_its_expert_of_the_bank(kind: str, tmp_path: Path) -> None:
    """CART's origin is the mean of the experts, which lies beside the adapters; norms, biases, embeddings are each
    task's own, in its adapter."""
    model = save_models(tmp_path, MODELS[kind])
    bank = build_bank({task: tmp_path / "experts" / task for task in TASKS}, method=CART(rank_ratio=0.2))
    code, output = export(bank, tmp_path, "--model.base", f"{tmp_path}/base")
    assert code == 0
    assert sorted(path.name for path in output.iterdir()) == ["base", *sorted(TASKS)]
    origin = TaskBank.load(tmp_path / "bank").merge(0.0)
    plain = first_output(type(model).from_pretrained(output / "base").eval())
    torch.testing.assert_close(plain, first_output(model, origin))
    for task in TASKS[:2]:
        found = first_output(on_base(model, output / "base", output / task))
        expected = first_output(model, bank.expert(task))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert (found - plain).abs().max() > 1e-2
    config = json.loads((output / "one" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(output / "base")
    # Ranks of matrices that are not square alike: 20 % of the smaller side.
    assert config["r"] == 3


def test_several_adapters_on_one_model(tmp_path: Path) -> None:
    """PEFT switches from one to another, and merges one into the base; and they are read as experts again."""
    from peft import PeftModel

    from lit_merge.checkpoints import open_checkpoint

    model = save_models(tmp_path, bert)
    bank = build_bank({task: tmp_path / "experts" / task for task in TASKS}, method=CART(rank_ratio=0.2))
    _, output = export(bank, tmp_path, "--model.base", f"{tmp_path}/base")
    loaded = PeftModel.from_pretrained(type(model).from_pretrained(output / "base"), output / "one", "one").eval()
    loaded.load_adapter(output / "two", "two")
    for task in ("two", "one", "two"):
        loaded.set_adapter(task)
        torch.testing.assert_close(first_output(loaded), first_output(model, bank.expert(task)), rtol=1e-4, atol=1e-5)
    merged = loaded.merge_and_unload().state_dict()
    read = open_checkpoint(output / "two", base=open_checkpoint(output / "base"))
    for name, value in bank.expert("two").items():
        torch.testing.assert_close(merged[name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(read.read(name), value, rtol=1e-4, atol=1e-6)
    base, file = open_checkpoint(output / "base"), output / "one" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": "another place"}))
    open_checkpoint(output / "one", base=base)
    file.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] + 1}))
    with pytest.raises(MergeError, match=r"adapter_config\.json is not as it was written"):
        open_checkpoint(output / "one", base=base)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_merge_as_one_adapter_of_the_given_base(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of task arithmetic, cut to a rank: the base is the pretrained one, and is not written again."""
    model = save_models(tmp_path, MODELS[kind])
    experts = {task: tmp_path / "experts" / task for task in TASKS}
    bank = build_bank(experts, tmp_path / "base", method=TaskArithmetic(scaling=0.4))
    options = ["--model.base", f"{tmp_path}/base", "--task", "merged"]
    code, output = export(bank, tmp_path, *options, "--rank_ratio", "0.25")
    assert (code, [path.name for path in output.iterdir()]) == (0, ["merged"])
    config = json.loads((output / "merged" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"{tmp_path}/base"
    assert config["task_type"] == ("CAUSAL_LM" if kind == "llama" else None)
    start, merged = load_file(tmp_path / "base" / "model.safetensors"), bank.merge()
    name = next(name for name in merged if "layers.1.mlp.up" in name or "layer.1.intermediate.dense.weight" in name)
    u, s, v = torch.linalg.svd((merged[name] - start[name]).double())
    expected = dict(merged)
    for one in config["target_modules"]:
        one = f"{one}.weight"
        u, s, v = torch.linalg.svd((merged[one] - start[one]).double(), full_matrices=False)
        rank = max(1, len(s) // 4)
        expected[one] = (start[one] + (u[:, :rank] * s[:rank]) @ v[:rank]).float()
    assert f"{name.removesuffix('.weight')}" in config["target_modules"]
    found = first_output(on_base(model, tmp_path / "base", output / "merged"))
    torch.testing.assert_close(found, first_output(model, expected), rtol=1e-4, atol=1e-5)
    # All of it takes more than the weights do.
    capsys.readouterr()
    code, _ = export(bank, tmp_path, *options)
    said = capsys.readouterr().err
    assert code == 2
    assert "merged differs from its base in no linear layer at a rank that makes it smaller: cut it" in said


def test_experts_that_were_adapters(tmp_path: Path) -> None:
    """CART's origin is then near the given base at a low rank, so that no base is written."""
    from peft import LoraConfig, get_peft_model

    model = save_models(tmp_path, bert)
    for i, task in enumerate(TASKS):
        fresh = type(model).from_pretrained(tmp_path / "base")
        config = LoraConfig(r=1, lora_alpha=1, target_modules=["query", "dense"], exclude_modules=["pooler.dense"])
        lora = get_peft_model(fresh, config)
        moved(nn.ParameterList(value for name, value in lora.named_parameters() if "lora_" in name), i)
        lora.save_pretrained(tmp_path / "adapters" / task)
    experts = {task: tmp_path / "adapters" / task for task in TASKS}
    bank = build_bank(experts, tmp_path / "base", method=CART(rank_ratio=0.07))
    code, output = export(bank, tmp_path, "--model.base", f"{tmp_path}/base")
    assert (code, sorted(path.name for path in output.iterdir())) == (0, sorted(TASKS))
    for task in TASKS:
        found = first_output(on_base(model, tmp_path / "base", output / task))
        torch.testing.assert_close(found, first_output(model, bank.expert(task)), rtol=1e-4, atol=1e-5)
    ranks = json.loads((output / "one" / "adapter_config.json").read_text())
    assert (ranks["r"], ranks["modules_to_save"]) == (3, None)  # of the mean of three


def test_heads_of_the_experts_come_along(tmp_path: Path) -> None:
    """A classifier that was not merged is in its task's adapter."""
    from peft import AutoPeftModelForSequenceClassification
    from transformers import BertConfig, BertForSequenceClassification

    for i, task in enumerate(TASKS):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=2 + i, **SIZES)).eval()
        moved(model, i)
        model.save_pretrained(tmp_path / "experts" / task)
    options = ["--model.experts", f"{tmp_path}/experts", "--model.exclude", '["classifier*"]']
    method = ["--model.method", "CART", "--model.method.rank_ratio", "0.2", "--format", "lora"]
    assert main(["export", *options, *method, "--output", f"{tmp_path}/out"]) == 0
    files = {task: tmp_path / "experts" / task for task in TASKS}
    from lit_merge import Experts

    bank = build_bank(Experts(files, exclude=["classifier*"]), method=CART(rank_ratio=0.2))
    for i, task in enumerate(TASKS):
        expert = BertForSequenceClassification.from_pretrained(tmp_path / "experts" / task).eval()
        weights = {**expert.state_dict(), **bank.expert(task)}
        loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out" / task, num_labels=2 + i)
        found = first_output(loaded.eval())
        assert found.shape == (2, 2 + i)
        torch.testing.assert_close(found, first_output(expert, weights), rtol=1e-4, atol=1e-5)


def test_an_image_tower_of_open_clip(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fused attention is whole in an adapter; parameters of the tower itself are named, or in one task's own base."""
    from open_clip.model import _build_vision_tower
    from peft import PeftModel

    options = json.loads(Path(tiny.network).read_text())

    def tower(weights: dict[str, Tensor]) -> Any:
        made = _build_vision_tower(options["embed_dim"], options["vision_cfg"], False).eval()
        made.load_state_dict(weights)
        return made

    bank = build_bank(tiny.experts, method=CART(rank_ratio=0.2))
    images = torch.randn(2, 3, 16, 16)
    code, output = export(bank, tmp_path)
    said = capsys.readouterr().err
    assert code == 0
    assert "alpha: not in the adapter, and left as base/ has it: " in said
    left = {"class_embedding", "positional_embedding", "proj"}
    assert all(name in said for name in left)
    base = load_file(output / "base" / "model.safetensors")
    expected = {name: base[name] if name in left else value for name, value in bank.expert("beta").items()}
    loaded = PeftModel.from_pretrained(tower(base), output / "beta").eval()
    torch.testing.assert_close(loaded(images), tower(expected)(images), rtol=1e-4, atol=1e-5)
    # Of one task, the base has them.
    for rest in ("adapter", "base"):
        code, output = export(bank, tmp_path, "--task", "beta", "--rest", rest)
        assert code == 0
        assert "beta: base/ holds what the adapter cannot: " in capsys.readouterr().err
        base = load_file(output / "base" / "model.safetensors")
        loaded = PeftModel.from_pretrained(tower(base), output / "beta").eval()
        torch.testing.assert_close(loaded(images), tower(bank.expert("beta"))(images), rtol=1e-4, atol=1e-5)
        whole = json.loads((output / "beta" / "adapter_config.json").read_text())["modules_to_save"]
        assert bool(whole) == (rest == "adapter")


def test_an_open_clip_bank_by_the_names_of_hugging_face(tiny: Any, tmp_path: Path) -> None:
    """Fused attention comes apart into the three layers that LoRA can hold; nothing is left out."""
    from peft import PeftModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    bank = build_bank(tiny.experts, method=CART(rank_ratio=0.2))
    code, output = export(bank, tmp_path, "--naming", "hugging_face")
    assert code == 0
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=16, hidden_act="gelu",
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    images = torch.randn(2, 3, 16, 16)
    expected = functional_call(model, bank.expert("beta", naming="hugging_face"), (images,)).image_embeds
    model.load_state_dict(load_file(output / "base" / "model.safetensors"))
    loaded = PeftModel.from_pretrained(model, output / "beta").eval()
    targets = json.loads((output / "beta" / "adapter_config.json").read_text())["target_modules"]
    assert "vision_model.encoder.layers.1.self_attn.q_proj" in targets
    torch.testing.assert_close(loaded(images).image_embeds, expected, rtol=1e-4, atol=1e-5)


def test_layers_without_biases_beside_layers_with(tmp_path: Path) -> None:
    """Qwen's attention has biases and its MLP none: PEFT gives a bias to all or to none, so those layers are whole."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(vocab_size=30, num_key_value_heads=1, **SIZES)
    model = save_models(tmp_path, lambda: Qwen2ForCausalLM(config))
    bank = build_bank({task: tmp_path / "experts" / task for task in TASKS}, method=CART(rank_ratio=0.2))
    _, output = export(bank, tmp_path, "--model.base", f"{tmp_path}/base")
    found = first_output(on_base(model, output / "base", output / "two"))
    torch.testing.assert_close(found, first_output(model, bank.expert("two")), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "four"], "no task 'four' in this bank, which has base, one"),
        ([], "task 'base' cannot be the name of an adapter's folder: rename it"),
        (["--max_shard_size", "1GB"], "max_shard_size is of format=merged and format=task: leave it out for lora"),
        (["--rank_ratio", "0"], "rank_ratio=0.0 is outside (0, 1]"),
    ],
)
def test_what_cannot_be_exported(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = {
        task: {"layers.0.attn.weight": torch.randn(6, 6), "layers.0.attn.bias": torch.randn(6)}
        for task in ("base", "one")
    }
    code, output = export(build_bank(states, method=CART(rank_ratio=0.3)), tmp_path, *options)
    assert said in capsys.readouterr().err
    assert (code, output.exists()) == (2, False)


def test_only_adapters_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = {
        task: {"layers.0.attn.weight": torch.randn(6, 6), "layers.0.attn.bias": torch.randn(6)}
        for task in ("two", "one")
    }
    bank = build_bank(states, method=CART(rank_ratio=0.17))
    code, output = export(bank, tmp_path)
    assert code == 0
    again = ["export", "--model.bank", f"{tmp_path}/bank", "--format", "lora", "--output", str(output), "--overwrite"]
    assert main(again) == 0
    capsys.readouterr()
    (output / "mine.txt").write_text("mine")
    assert main(again) == 2
    assert "holds mine.txt, which `lit-merge export --format lora` did not write" in capsys.readouterr().err
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    assert main([*again[:-2], f"{tmp_path}/other.safetensors", "--overwrite"]) == 2
