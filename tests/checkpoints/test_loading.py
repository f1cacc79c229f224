"""Folders with a config.json load whole, as transformers itself says, or are refused before anything is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge.cli.main import main

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def llama(**more: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL, **more))


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=8))


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2))


def bert(labels: int = 3) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    names = {i: f"kind{i}" for i in range(labels)}
    return BertForSequenceClassification(BertConfig(**SMALL, id2label=names, label2id={n: i for i, n in names.items()}))


def save(root: Path, make: Callable[[], Any], names: tuple[str, ...] = ("base", "experts/a", "experts/b")) -> None:
    """Models of one architecture, whose weights differ a little."""
    with torch.random.fork_rng():
        for seed, name in enumerate(names):
            torch.manual_seed(0)
            model = make()
            torch.manual_seed(seed)
            with torch.no_grad():
                for value in model.parameters():
                    value.add_(0.02 * seed * torch.randn_like(value))
            model.save_pretrained(root / name)


def change(folder: Path, **entries: Any) -> None:
    """Entries of a folder's config.json, without those that are None."""
    about = json.loads((folder / "config.json").read_text()) | entries
    (folder / "config.json").write_text(json.dumps({name: value for name, value in about.items() if value is not None}))


def rename(folder: Path, names: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Other weights in a folder."""
    save_file(names(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def merge(root: Path, *more: str, base: bool = True) -> int:
    pretrained = ["--model.base", str(root / "base"), "--model.method", "TaskArithmetic"]
    pretrained = pretrained if base else ["--model.method", "WeightAveraging"]
    return main(["merge", "--model.experts", str(root / "experts"), *pretrained, "--output", str(root / "out"), *more])


def load(folder: Path) -> Any:
    """By the class that config.json names; fails where a key is missing, unexpected or of another shape."""
    import transformers

    about = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, about["architectures"][0])
    model, shown = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(shown.values()), shown
    return model


def sums(root: Path, name: str) -> torch.Tensor:
    """What task arithmetic makes of a weight, in float64."""
    base, *experts = (
        load_file(root / one / "model.safetensors")[name].double() for one in ("base", "experts/a", "experts/b")
    )
    return base + 0.3 * sum(expert - base for expert in experts)


@pytest.mark.parametrize("make", [llama, lambda: llama(tie_word_embeddings=True), gpt2, t5, bert])
def test_whole(make: Callable[[], Any], tmp_path: Path) -> None:
    save(tmp_path, make)
    assert merge(tmp_path) == 0
    model = load(tmp_path / "out")
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("who", [("a",), ("a", "b")])
def test_a_stored_copy_of_the_embeddings_is_tied_again(who: tuple[str, ...], tmp_path: Path) -> None:
    save(tmp_path, lambda: llama(tie_word_embeddings=True))
    for name in who:
        folder = tmp_path / "experts" / name
        rename(folder, lambda old: old | {"lm_head.weight": old["model.embed_tokens.weight"].clone()})
        change(folder, tie_word_embeddings=False)
    assert merge(tmp_path) == 0
    model = load(tmp_path / "out")
    assert model.config.tie_word_embeddings is True
    expected = sums(tmp_path, "model.embed_tokens.weight").float()
    torch.testing.assert_close(model.lm_head.weight.data, expected)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_an_output_layer_of_its_own_in_one_expert_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, lambda: llama(tie_word_embeddings=True))
    folder = tmp_path / "experts" / "a"
    rename(folder, lambda old: old | {"lm_head.weight": old["model.embed_tokens.weight"] + 1})
    change(folder, tie_word_embeddings=False)
    assert merge(tmp_path) == 2
    assert "lm_head.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("said", [32, 64])
def test_vocabulary_size_is_that_of_the_rows(said: int, tmp_path: Path) -> None:
    save(tmp_path, llama)
    for name in ("a", "b"):
        change(tmp_path / "experts" / name, vocab_size=said)
    assert merge(tmp_path) == 0
    assert load(tmp_path / "out").config.vocab_size == 40


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_dtype_is_that_of_the_weights(kind: str, tmp_path: Path) -> None:
    save(tmp_path, llama)
    for name in ("base", "experts/a", "experts/b"):
        change(tmp_path / name, dtype=kind)
    assert merge(tmp_path) == 0
    assert load(tmp_path / "out").dtype == torch.float32
    assert merge(tmp_path, "--dtype", kind, "--overwrite") == 0
    assert load(tmp_path / "out").dtype == getattr(torch, kind)


def test_a_left_out_head_is_no_part_of_the_architecture(tmp_path: Path) -> None:
    save(tmp_path, bert)
    assert merge(tmp_path, "--model.exclude", "[classifier.*]", base=False) == 0
    assert type(load(tmp_path / "out")).__name__ == "BertModel"


def test_a_head_of_the_base_has_its_classes(tmp_path: Path) -> None:
    """Of as many classes as the experts', which are called otherwise."""
    save(tmp_path, bert)
    change(tmp_path / "base", id2label={"0": "x", "1": "y", "2": "z"}, label2id={"x": 0, "y": 1, "z": 2})
    assert merge(tmp_path, "--model.exclude", "[classifier.*]") == 0
    model = load(tmp_path / "out")
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert torch.equal(model.classifier.weight, load_file(tmp_path / "base" / "model.safetensors")["classifier.weight"])


def test_classes_are_as_many_as_the_head_has(tmp_path: Path) -> None:
    save(tmp_path, bert)
    for name in ("a", "b"):
        change(tmp_path / "experts" / name, id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    assert merge(tmp_path) == 0
    assert load(tmp_path / "out").config.num_labels == 3


def test_what_is_kept_of_a_base_goes_by_the_experts_names(tmp_path: Path) -> None:
    save(tmp_path, bert)
    base = tmp_path / "base"
    rename(base, lambda old: {n.removeprefix("bert."): v for n, v in old.items() if n.startswith("bert.")})
    change(base, architectures=["BertModel"], id2label=None, label2id=None)
    kept = load_file(base / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert merge(tmp_path, "--model.exclude", '["*word_embeddings*"]', "--model.exclude+", "classifier.*") == 0
    model = load(tmp_path / "out")
    assert torch.equal(model.get_input_embeddings().weight, kept)


def test_names_that_the_architecture_has_not_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, llama)
    for name in ("base", "experts/a", "experts/b"):
        rename(tmp_path / name, lambda old: {f"network.{key}": value for key, value in old.items()})
    capsys.readouterr()
    assert merge(tmp_path) == 2
    line = capsys.readouterr().err
    assert "do not load whole as LlamaForCausalLM" in line
    assert "it has no lm_head.weight" in line
    assert "nothing takes network.lm_head.weight" in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["merge", "--model.experts", str(tmp_path / "experts"), "--model.method", "WeightAveraging",
                 "--output", str(tmp_path / "out.safetensors")]) == 0  # fmt: skip


@pytest.mark.parametrize("form", ["merged", "task"])
def test_exported(form: str, tmp_path: Path) -> None:
    """A bank of experts that store a copy of the embeddings and a base that says it is untied."""
    save(tmp_path, lambda: llama(tie_word_embeddings=True))
    for name in ("a", "b"):
        folder = tmp_path / "experts" / name
        rename(folder, lambda old: old | {"lm_head.weight": old["model.embed_tokens.weight"].clone()})
        change(folder, tie_word_embeddings=False, dtype="bfloat16")
    experts, base = ["--model.experts", str(tmp_path / "experts")], ["--model.base", str(tmp_path / "base")]
    assert (
        main(["export", *experts, *base, "--model.method", "TaskArithmetic", "--output", str(tmp_path / "bank")]) == 0
    )
    more = ["--task", "b"] if form == "task" else []
    saved = ["export", "--model.bank", str(tmp_path / "bank"), "--format", form, *more]
    for i, beside in enumerate(([*experts, *base], base)):
        output = tmp_path / f"out{i}"
        assert main([*saved, *beside, "--output", str(output), "--max_shard_size", "4KB"]) == 0
        model = load(output)
        assert model.dtype == torch.float32
        assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_a_configuration_of_no_known_model_is_left_alone(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "experts/a", "experts/b")):
        (tmp_path / name).mkdir(parents=True)
        save_file({"blocks.0.weight": torch.ones(4, 4) * seed}, tmp_path / name / "model.safetensors")
        about = {"model_type": "of_our_own", "architectures": ["OurModel"], "size": seed}
        (tmp_path / name / "config.json").write_text(json.dumps(about))
    assert merge(tmp_path) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["size"] == 1


def test_an_output_layer_of_its_own_is_not_said_to_be_tied(tmp_path: Path) -> None:
    save(tmp_path, llama)
    for name in ("base", "experts/a", "experts/b"):
        change(tmp_path / name, tie_word_embeddings=True)
    assert merge(tmp_path) == 0
    model = load(tmp_path / "out")
    assert model.config.tie_word_embeddings is False
    torch.testing.assert_close(model.lm_head.weight.data, sums(tmp_path, "lm_head.weight").float())


def test_the_bases_own_weights_do_not_lower_the_precision(tmp_path: Path) -> None:
    save(tmp_path, llama)
    rename(tmp_path / "base", lambda old: {name: value.bfloat16() for name, value in old.items()})
    change(tmp_path / "base", dtype="bfloat16")
    assert merge(tmp_path, "--model.exclude", '["lm_head*"]') == 0
    assert load(tmp_path / "out").dtype == torch.float32


def test_parts_of_a_configuration(tmp_path: Path) -> None:
    """A model of texts and images, whose words have a part of their own."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 40, "num_key_value_heads": 1, "head_dim": 8}
    tokens = {"image_token_index": 3, "boi_token_index": 4, "eoi_token_index": 5, "mm_tokens_per_image": 4}
    config = {"vision_config": sizes | {"image_size": 8, "patch_size": 4}, "text_config": text, **tokens}
    save(tmp_path, lambda: Gemma3ForConditionalGeneration(Gemma3Config(**config)))
    for name in ("a", "b"):
        folder = tmp_path / "experts" / name
        part = json.loads((folder / "config.json").read_text())["text_config"]
        part |= {"vocab_size": 64, "dtype": "bfloat16", "tie_word_embeddings": False}
        change(folder, text_config=part, tie_word_embeddings=False)
    assert merge(tmp_path) == 0
    model = load(tmp_path / "out")
    assert type(model) is Gemma3ForConditionalGeneration
    assert model.config.text_config.vocab_size == 40
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def bert_called(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda old: {key.replace("LayerNorm.weight", f"LayerNorm.{name}"): value for key, value in old.items()}


def test_old_names_of_all(tmp_path: Path) -> None:
    save(tmp_path, bert)
    for name in ("base", "experts/a", "experts/b"):
        rename(tmp_path / name, bert_called("gamma"))
    assert merge(tmp_path) == 0
    weight = "bert.embeddings.LayerNorm."
    expected = sums(tmp_path, f"{weight}gamma").float()
    torch.testing.assert_close(load(tmp_path / "out").state_dict()[f"{weight}weight"], expected)


@pytest.mark.parametrize(
    ("said", "kind"), [("BertModel", "SequenceClassification"), ("BertForMaskedLM", "PreTraining")]
)
def test_the_architecture_is_that_of_the_names(said: str, kind: str, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForPreTraining

    save(tmp_path, bert if kind == "SequenceClassification" else lambda: BertForPreTraining(BertConfig(**SMALL)))
    for name in ("a", "b"):
        change(tmp_path / "experts" / name, architectures=[said])
    assert merge(tmp_path) == 0
    assert type(load(tmp_path / "out")).__name__ == f"BertFor{kind}"


def test_a_second_name_of_a_bias(tmp_path: Path) -> None:
    """As some versions of transformers write it and others do not."""
    from transformers import BertConfig, BertForMaskedLM

    save(tmp_path, lambda: BertForMaskedLM(BertConfig(**SMALL)))
    bias = "cls.predictions.bias"
    rename(tmp_path / "experts" / "a", lambda old: old | {"cls.predictions.decoder.bias": old[bias].clone()})
    assert merge(tmp_path) == 0
    model = load(tmp_path / "out")
    torch.testing.assert_close(model.cls.predictions.decoder.bias.data, sums(tmp_path, bias).float())
