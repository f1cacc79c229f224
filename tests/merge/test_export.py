"""Banks leave as folders that transformers loads, with the configuration of the models they were made of."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lit_merge import CART, TaskBank, build_bank
from lit_merge.cli.main import main

OTHER = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def made(language_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three experts, one of which speaks by another chat template, and their bank."""
    root = language_models.save(tmp_path_factory.mktemp("export"))
    (root / "experts" / "code" / "chat_template.jinja").write_text(OTHER)
    bank = build_bank(experts(root), root / "base", method=CART(rank_ratio=0.25))
    bank.save(root / "bank")
    return Path(root)


def experts(root: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((root / "experts").iterdir())}


def export(root: Path, output: Path, *options: str) -> int:
    return main(["export", "--model.bank", str(root / "bank"), "--output", str(output), *options])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (2, 1), said
    return said


def test_a_task_as_a_folder(
    language_models: Any,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the very expert: its chat template; in shards; never all weights in memory."""
    bank = TaskBank.load(made / "bank")
    expected = bank.expert("code")
    monkeypatch.delattr(TaskBank, "merge")
    options = ["--format", "task", "--task", "code", "--model.experts", str(made / "experts")]
    assert export(made, tmp_path / "code", *options, "--max_shard_size", "6KB") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Copied next to the weights: chat_template.jinja, config.json, generation_config.json, tokenizer" in said
    state = language_models.load(tmp_path / "code").state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert (tmp_path / "code" / "chat_template.jinja").read_text() == OTHER
    shards = sorted((tmp_path / "code").glob("model-*.safetensors"))
    assert len(shards) > 1
    with safe_open(shards[0], "pt") as file:
        assert file.metadata().items() >= {"format": "pt", "lit_merge": "task"}.items()
    assert export(made, tmp_path / "merged", "--format", "merged", *options[4:]) == 0
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() != OTHER


def test_a_base_serves_where_there_are_no_experts(made: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    options = ["--format", "merged", "--model.base", str(made / "base"), "--dtype", "float32"]
    assert export(made, tmp_path / "merged", *options) == 0
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    expected = TaskBank.load(made / "bank").merge(dtype=torch.float32)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())
    assert main(["merge", *options[2:4], "--model.bank", f"{made}/bank", "--output", f"{tmp_path}/again"]) == 0
    assert (tmp_path / "again" / "tokenizer.json").exists()


def test_a_bank_alone_says_what_is_missing(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(made, tmp_path / "merged", "--format", "merged") == 0
    said = capsys.readouterr().err
    assert "no configuration next to the weights: --model.experts or --model.base names the models" in said
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["model.safetensors"]


def test_configurations_of_other_models_are_refused(
    language_models: Any, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, merged = tmp_path / "out", ["--format", "merged"]
    grown = tmp_path / "grown"
    shutil.copytree(made / "base", grown)
    language_models.add_tokens(grown, "<think>")
    line = refused(capsys, export(made, output, *merged, "--model.base", str(grown)))
    assert f"in the bank and [{len(language_models.tokenizer()) + 1}, 16] in {grown}" in line
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    line = refused(capsys, export(made, output, *merged, "--model.base", f"{tmp_path}/other.safetensors"))
    assert "in the bank and absent in" in line
    less = ["--model.experts", str(made / "experts"), "--model.exclude", '["lm_head*"]']
    line = refused(capsys, export(made, output, *merged, *less))
    assert "lm_head.weight is [" in line
    assert "absent in the experts: give the experts, exclude and crop that the bank was made with" in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        (["--max_shard_size", "1KB"], "out", "max_shard_size is of format=merged and format=task"),
        (["--format", "merged", "--max_shard_size", "much"], "out", "max_shard_size is 'much'"),
        (["--format", "merged", "--max_shard_size", "1GB"], "out.pt", "out.pt is one file, and max_shard_size is"),
        (
            ["--format", "merged"],
            "out.bin",
            "out.bin: expected a name that ends in .safetensors, or the name of a folder",
        ),
        (["--format", "task"], "out", "format=task needs --task"),
        (["--format", "merged", "--task", "chat"], "out", "format=merged is of all tasks: leave task out, or take"),
        (["--task", "chat"], "out", "format=bank is of all tasks: leave task out, or take format=task for chat alone"),
        (["--budget", "2x", "--task", "chat"], "out", "format=bank is of all tasks"),
        (["--format", "hugging_face"], "out", "format=hugging_face is a CLIP's folder, and these weights (lm_head.wei"),
        (["--rest", "base"], "out", "rest=base is of format=lora: leave it out for bank"),
        (
            ["--format", "onnx", "--naming", "hugging_face"],
            "out.onnx",
            "format=onnx says itself what weights are called",
        ),
        (
            ["--format", "task", "--task", "cooking"],
            "out",
            "no task 'cooking' in this bank, which has chat, code, math",
        ),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], name: str, said: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, export(made, tmp_path / name, *options))
    assert not list(tmp_path.iterdir())


# peft asks a transformers of today what it used to ask.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(("extra", "taken"), [((), True), (("<think>",), False)])
def test_tokenizers_of_adapters(
    extra: tuple[str, ...],
    taken: bool,
    language_models: Any,
    made: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first adapter's own, where there is a row for each of its tokens; configuration is the base's."""
    for seed, task in enumerate(("chat", "code")):
        language_models.save_adapter(made / "base", tmp_path / "experts" / task, seed)
    own = language_models.tokenizer(extra)
    own.chat_template = OTHER
    own.save_pretrained(tmp_path / "experts" / "chat")
    (made / "base" / "special_tokens_map.json").write_text("{}")  # of the other tokenizer
    options = [
        "--model.experts",
        f"{tmp_path}/experts",
        "--model.base",
        f"{made}/base",
        "--model.method",
        "TaskArithmetic",
    ]
    assert main(["merge", *options, "--output", f"{tmp_path}/merged"]) == 0
    language_models.load(tmp_path / "merged")
    assert ((tmp_path / "merged" / "chat_template.jinja").read_text() == OTHER) == taken
    assert (tmp_path / "merged" / "special_tokens_map.json").exists() != taken
    assert (tmp_path / "merged" / "generation_config.json").exists()
    rows = len(language_models.tokenizer())
    said = f"its tokenizer has {rows + 1} tokens for {rows} rows of the vocabulary: that of {made}/base is taken"
    assert (said in capsys.readouterr().err) != taken


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_broken_tokenizer_of_an_adapter(
    language_models: Any, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    language_models.save_adapter(made / "base", tmp_path / "experts" / "chat", 0)
    file = tmp_path / "experts" / "chat" / "tokenizer.json"
    options = ["--model.experts", f"{tmp_path}/experts", "--model.base", f"{made}/base", "--model.method", "CART"]
    for text, why in (
        ("{", "is no JSON, expected a tokenizer's file"),
        ("[]", "is no tokenizer's file: expected a JSON object"),
    ):
        file.write_text(text)
        line = refused(capsys, main(["merge", *options, "--output", f"{tmp_path}/merged"]))
        assert f"{file} {why}" in line
    assert not (tmp_path / "merged").exists()


def test_image_towers_have_no_configuration(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = ["--model.experts", f"{tiny.root}/experts", "--model.method", "CART"]
    assert main(["export", *experts, "--format", "merged", "--output", f"{tmp_path}/merged"]) == 0
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["model.safetensors"]
    assert capsys.readouterr().err == ""
    expected = build_bank(tiny.experts, method=CART()).merge()
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
