"""Numbers of tokens mean the same in all checkpoints of a merge; rows of other tokens are refused, or cut away."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import TaskArithmetic, build_bank
from lit_merge.checkpoints import open_checkpoint
from lit_merge.checkpoints.companions.cropping import is_vocabulary, vocabulary
from lit_merge.checkpoints.companions.vocabularies import conflicts, read_tokens, token_count
from lit_merge.cli.main import main
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.experts.experts import Experts

ROWS, PLACES = 11, ("base", "experts/chat", "experts/code")
EMBEDDINGS = "model.embed_tokens.weight"


def weights(seed: int, rows: int = ROWS, name: str = EMBEDDINGS) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    shapes = {name: (rows, 8), "model.layers.0.mlp.up_proj.weight": (8, 8)}
    return {weight: torch.randn(shape, generator=made) for weight, shape in shapes.items()}


def save(root: Path, added: dict[str, str | None], form: str = "tokenizer.json", **more: Any) -> list[Path]:
    """Checkpoints that call token 10 so, in files of a form; one that is None has no token 10."""
    tokens = {f"t{i}": i for i in range(10)}
    for seed, (place, token) in enumerate(added.items()):
        folder = root / place
        folder.mkdir(parents=True)
        save_file(weights(seed, **more), folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": ROWS, "pad_token_id": 10}))
        last = {} if token is None else {token: 10}
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if form == "tokenizer.json":
            listed = [{"id": 10, "content": one, "special": True} for one in last]
            about = {"model": {"type": "WordLevel", "vocab": tokens, "unk_token": "t0"}, "added_tokens": listed}
            config |= {"pad_token": token} if token else {}
        elif form == "unigram":
            about = {"model": {"type": "Unigram", "vocab": [[one, 0.0] for one in (*tokens, *last)]}}
        elif form == "vocab.txt":
            (folder / form).write_text("\n".join([*tokens, *last]) + "\n")
        elif form == "vocab.json":
            (folder / form).write_text(json.dumps(tokens | last))
        else:
            (folder / "vocab.json").write_text(json.dumps(tokens))
            if form == "added_tokens.json":
                (folder / form).write_text(json.dumps(last))
            else:
                config["added_tokens_decoder"] = {n: {"content": one} for one, n in last.items()}
        if form in ("tokenizer.json", "unigram"):
            blank = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
            blank |= {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None}
            (folder / "tokenizer.json").write_text(json.dumps(blank | about))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return [root / place for place in added]


def merge(root: Path, *more: str) -> int:
    options = ["--model.experts", str(root / "experts"), "--model.base", str(root / "base")]
    return main(["merge", *options, "--model.method", "TaskArithmetic", "--output", str(root / "out"), *more])


@pytest.mark.parametrize(
    "form", ["tokenizer.json", "unigram", "vocab.txt", "vocab.json", "added_tokens.json", "tokenizer_config.json"]
)
def test_other_tokens_of_one_number(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, chat, code = save(tmp_path, dict(zip(PLACES, ("<pad>", "<pad>", "<tool>"), strict=True)), form)
    assert merge(tmp_path) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for said in (f"token 10 is '<pad>' in {tmp_path / 'base'}", "'<pad>'", "'<tool>'", str(code), "crop", EMBEDDINGS):
        assert said in line or (said.endswith(str(tmp_path / "base")) and f"'<pad>' in {chat}" in line)
    assert not (tmp_path / "out").exists()
    assert merge(tmp_path, "--model.crop", "true") == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    base, *experts = (load_file(tmp_path / place / "model.safetensors") for place in PLACES)
    for name, value in base.items():
        first = value.double()[:10]
        expected = first + 0.3 * sum(one[name].double()[:10] - first for one in experts)
        torch.testing.assert_close(found[name], expected.float())
    assert read_tokens(tmp_path / "out") == {i: f"t{i}" for i in range(10)}
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["vocab_size"] == 10
    assert about["pad_token_id"] is None


def test_the_cut_tokenizer_loads(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save(tmp_path, dict(zip(PLACES, ("<pad>", "<tool>", "<user>"), strict=True)))
    assert merge(tmp_path, "--model.crop", "true") == 0
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words.get_vocab() == {f"t{i}": i for i in range(10)}
    assert words("t3 t9").input_ids == [3, 9]


def test_a_cut_byte_pair_tokenizer_loads(language_models: Any, tmp_path: Path) -> None:
    """Tokens that were made of others go with their merges."""
    from transformers import AutoTokenizer

    from lit_merge.checkpoints.companions.trimming import trim

    whole = language_models.tokenizer(("<tool>",))
    whole.save_pretrained(tmp_path)
    rows = len(whole) - 8
    trim(tmp_path, rows)
    words = AutoTokenizer.from_pretrained(tmp_path)
    assert words.get_vocab() == {token: number for token, number in whole.get_vocab().items() if number < rows}
    assert max(words("the cat sleeps").input_ids) < rows
    assert token_count(tmp_path) == rows


def test_excluded_rows_are_those_of_the_bases_tokens(tmp_path: Path) -> None:
    save(tmp_path, dict(zip(PLACES, ("<pad>", "<tool>", "<user>"), strict=True)))
    assert merge(tmp_path, "--model.exclude", '["*embed_tokens*"]') == 0
    assert read_tokens(tmp_path / "out")[10] == "<pad>"
    found, base = (load_file(tmp_path / name / "model.safetensors")[EMBEDDINGS] for name in ("out", "base"))
    assert torch.equal(found, base)


def test_a_token_of_one_expert_in_a_row_of_padding(tmp_path: Path) -> None:
    save(tmp_path, dict(zip(PLACES, (None, None, "<tool>"), strict=True)))
    assert merge(tmp_path) == 0
    assert read_tokens(tmp_path / "out")[10] == "<tool>"
    assert len(load_file(tmp_path / "out" / "model.safetensors")[EMBEDDINGS]) == ROWS


def test_orders_that_differ_from_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = save(tmp_path, dict(zip(PLACES, ("<pad>", "<pad>", "<pad>"), strict=True)), "vocab.json")
    for first in (0, 3):
        numbers = [*range(first), *range(first + 1, 10), first]
        vocabulary = {f"t{i}": n for n, i in enumerate(numbers)}
        (folders[2] / "vocab.json").write_text(json.dumps(vocabulary))
        if first == 0:
            assert merge(tmp_path, "--model.crop", "true") == 2
            line = capsys.readouterr().err
            assert "token 0 is 't0'" in line
            assert "crop" not in line
            continue
        with pytest.warns(MergeWarning, match="the same up to token 3 only"):
            assert merge(tmp_path, "--model.crop", "true") == 0
        assert len(load_file(tmp_path / "out" / "model.safetensors")[EMBEDDINGS]) == 3


def test_pieces_are_compared_by_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, inside in zip(folders, (b"one", b"one", b"two"), strict=True):
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(inside)
    assert not list(conflicts(folders[:2], 100))
    (found,) = conflicts(folders, 100)
    assert found.number is None
    assert "tokenizer.model" in found.text


def test_a_broken_tokenizer_is_told_of(tmp_path: Path) -> None:
    for inside in ("no json", "[]", '{"added_tokens": [{"content": "x"}]}'):
        (tmp_path / "tokenizer.json").write_text(inside)
        with pytest.raises(MergeError, match=r"tokenizer\.json"):
            read_tokens(tmp_path)


def test_equal_tokenizers_take_no_time(tmp_path: Path) -> None:
    """As many tokens as large models have."""
    about = json.dumps({"model": {"vocab": {f"token{i}": i for i in range(100_000)}}})
    folders = [tmp_path / str(i) for i in range(4)]
    for folder in folders:
        folder.mkdir()
        (folder / "tokenizer.json").write_text(about)
    start = time.perf_counter()
    assert not list(conflicts(folders, 250_000))
    assert time.perf_counter() - start < 0.5


def test_adapters_have_tokens_of_their_own(tmp_path: Path) -> None:
    (base,) = save(tmp_path, {"base": None})
    experts = {}
    for seed, (name, token) in enumerate({"chat": "<user>", "code": "<tool>"}.items()):
        (folder,) = save(tmp_path, {name: token})
        (folder / "model.safetensors").unlink()
        (folder / "config.json").unlink()
        about = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["up_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(about | {"modules_to_save": ["embed_tokens"]}))
        prefix = "base_model.model.model."
        saved = {f"{prefix}embed_tokens.weight": weights(seed)[EMBEDDINGS]}
        saved |= {f"{prefix}layers.0.mlp.up_proj.lora_{part}.weight": torch.ones(size) for part, size in
                  {"A": (1, 8), "B": (8, 1)}.items()}  # fmt: skip
        save_file(saved, folder / "adapter_model.safetensors")
        experts[name] = folder
    with pytest.raises(MergeError, match=r"token 10 is '<user>' in .*chat and '<tool>' in .*code"):
        Experts(experts, base)
    assert Experts(experts, base, crop=True).shapes[EMBEDDINGS] == (10, 8)


@pytest.mark.parametrize(
    "kind", ["T5", "BertForMaskedLM", "XLNet", "OPT", "GPTNeoX", "Bloom", "Mamba", "Bart", "GPT2", "Roberta", "Albert"]
)
def test_vocabularies_of_many_families(kind: str, tmp_path: Path) -> None:
    """Those that grow with the number of tokens, and no others."""
    import transformers as of

    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    bart = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    bart |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 16}
    made: dict[str, Any] = {
        "T5": (
            of.T5ForConditionalGeneration,
            of.T5Config,
            {"d_model": 16, "d_ff": 24, "num_layers": 1, "num_heads": 2},
        ),
        "BertForMaskedLM": (of.BertForMaskedLM, of.BertConfig, small),
        "XLNet": (of.XLNetLMHeadModel, of.XLNetConfig, {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24}),
        "OPT": (of.OPTForCausalLM, of.OPTConfig, small | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
        "GPTNeoX": (of.GPTNeoXForCausalLM, of.GPTNeoXConfig, small),
        "Bloom": (of.BloomForCausalLM, of.BloomConfig, {"hidden_size": 16, "n_layer": 1, "n_head": 2}),
        "Mamba": (of.MambaForCausalLM, of.MambaConfig, {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}),
        "Bart": (of.BartForConditionalGeneration, of.BartConfig, bart),
        "GPT2": (of.GPT2LMHeadModel, of.GPT2Config, {"n_embd": 16, "n_layer": 1, "n_head": 2}),
        "Roberta": (of.RobertaForMaskedLM, of.RobertaConfig, small),
        "Albert": (of.AlbertForMaskedLM, of.AlbertConfig, small | {"embedding_size": 8}),
    }
    model, config, sizes = made[kind]
    with torch.device("meta"):
        shapes = [
            {name: tuple(value.shape) for name, value in model(config(vocab_size=rows, **sizes)).state_dict().items()}
            for rows in (56, 57)
        ]
    expected = {name for name, shape in shapes[0].items() if shape != shapes[1][name]}
    assert expected
    assert {name for name in shapes[0] if is_vocabulary(name)} == expected
    # By shape alone, under names that nobody knows.
    unknown = {name: name.replace("embed", "table").replace("lm_head", "out") for name in shapes[0]}
    save_file({unknown[name]: torch.zeros(shape) for name, shape in shapes[0].items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 56}))
    held = vocabulary(open_checkpoint(tmp_path))
    assert {unknown[name] for name in expected if "final_logits_bias" not in name} <= held


def test_tied_copies_are_cut_alike(tmp_path: Path) -> None:
    """T5's shared embeddings and BART's bias, which has a column for every token."""
    experts = {}
    for seed, rows in enumerate((11, 12)):
        table = weights(seed, rows)[EMBEDDINGS]
        held = {"shared.weight": table, "encoder.embed_tokens.weight": table.clone()}
        experts[f"task{seed}"] = held | {
            "final_logits_bias": torch.ones(1, rows),
            "encoder.block.0.k.weight": table[:8],
        }
    base = {name: value + 0.5 for name, value in experts["task0"].items()}
    opened = Experts(experts, base, crop=True)
    assert opened.shapes["shared.weight"] == opened.shapes["encoder.embed_tokens.weight"] == (11, 8)
    assert opened.shapes["final_logits_bias"] == (1, 11)
    merged = build_bank(opened, method=TaskArithmetic()).merge()
    assert torch.equal(merged["shared.weight"], merged["encoder.embed_tokens.weight"])
    torch.testing.assert_close(merged["final_logits_bias"], torch.full((1, 11), 1.5 - 2 * 0.3 * 0.5))
