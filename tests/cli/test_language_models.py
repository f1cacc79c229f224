"""Causal language models merge, with what lies beside them, into folders that transformers loads."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lit_merge import CART, TIES, TSVM, MergeMethod, TaskArithmetic, WeightAveraging, build_bank
from lit_merge.checkpoints import open_checkpoint
from lit_merge.cli.main import main
from lit_merge.experts.stream import WeightStream
from tests.forked_commands import wait_until

KINDS = ("llama", "qwen2", "mistral", "gpt2")
METHODS = {
    "WeightAveraging": WeightAveraging(),
    "TaskArithmetic": TaskArithmetic(),
    "TIES": TIES(),
    "CART": CART(rank_ratio=0.25),
    "TSVM": TSVM(),
}


@pytest.fixture(scope="module")
def made(language_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and experts of every kind, tied and not: written once, never changed."""
    root = tmp_path_factory.mktemp("language_models")
    for kind in KINDS:
        language_models.save(root / kind, kind, tied=kind == "gpt2")
    language_models.save(root / "tied", "qwen2", tied=True)
    return root


@pytest.fixture
def llama(made: Path, tmp_path: Path) -> Path:
    """One that may be changed."""
    return Path(shutil.copytree(made / "llama", tmp_path / "llama"))


def options(root: Path, method: str = "CART", *more: str) -> list[str]:
    return [
        "--model.experts",
        str(root / "experts"),
        "--model.base",
        str(root / "base"),
        "--model.method",
        method,
        *more,
    ]


def experts(root: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((root / "experts").iterdir())}


def weights(folder: Path) -> dict[str, Tensor]:
    opened = open_checkpoint(folder)
    return {name: opened.read(name) for name in opened.shapes}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("lit_merge: error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("kind", [*KINDS, "tied"])
def test_folder_loads_with_everything(language_models: Any, kind: str, made: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    output = tmp_path / "merged"
    assert main(["merge", *options(made / kind), "--output", str(output), "--max_shard_size", "6KB"]) == 0
    model = language_models.load(output)
    files = sorted(output.glob("model-*.safetensors"))
    assert len(files) > 1
    for file in files:
        with safe_open(file, "pt") as opened:
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118
        assert sum(sizes) <= 6000 or len(sizes) == 1
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    expected = build_bank(experts(made / kind), made / kind / "base", method=CART()).merge()
    state = model.state_dict()
    found = weights(output)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value)
        assert torch.equal(state[name], value)
    first = next(iter(experts(made / kind).values()))
    tokenizer = AutoTokenizer.from_pretrained(output)
    chat = [{"role": "user", "content": "the cat"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>user: the cat</s>"
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(first).get_vocab()
    assert GenerationConfig.from_pretrained(output).to_dict() == GenerationConfig.from_pretrained(first).to_dict()
    ids = tokenizer("the cat sleeps", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))


@pytest.mark.parametrize("name", METHODS)
def test_methods_stream_what_the_bank_holds(name: str, made: Path, tmp_path: Path) -> None:
    method: MergeMethod = METHODS[name]
    rank = ["--model.method.rank_ratio", "0.25"] if name == "CART" else []
    output = tmp_path / "merged"
    assert main(["merge", *options(made / "llama", name), *rank, "--output", str(output)]) == 0
    assert sorted(path.name for path in output.glob("model*")) == ["model.safetensors"]
    expected = build_bank(experts(made / "llama"), made / "llama" / "base", method=method).merge()
    found = load_file(output / "model.safetensors")
    assert found.keys() == expected.keys()
    for weight, value in expected.items():
        # TIES sums before it rounds to bfloat16, where a bank holds every task's part rounded.
        torch.testing.assert_close(found[weight], value, rtol=0, atol=1e-3 * (name == "TIES"))
    assert {value.dtype for value in found.values()} == {torch.bfloat16}


def test_one_file(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "merged.safetensors"
    assert main(["merge", *options(made / "llama", "TaskArithmetic"), "--output", str(output)]) == 0
    expected = build_bank(experts(made / "llama"), made / "llama" / "base", method=TaskArithmetic()).merge()
    assert all(torch.equal(value, expected[name]) for name, value in load_file(output).items())
    assert list(tmp_path.iterdir()) == [output]


def test_added_tokens_are_refused_unless_told(
    language_models: Any, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    language_models.add_tokens(llama / "experts" / "chat", "<think>", "<end>")
    rows = len(language_models.tokenizer())
    output = tmp_path / "merged"
    line = refused(capsys, "merge", *options(llama), "--output", str(output))
    for said in (
        "chat",
        "code",
        "lm_head.weight, model.embed_tokens.weight]",
        f"[{rows}, 16]",
        f"[{rows + 2}, 16]",
        "crop",
        "exclude",
    ):
        assert said in line
    assert not output.exists()
    assert main(["merge", *options(llama), "--model.crop", "true", "--output", str(output)]) == 0
    model, tokenizer = language_models.load(output), AutoTokenizer.from_pretrained(output)
    assert model.get_input_embeddings().weight.shape == model.lm_head.weight.shape == (rows, 16)
    assert model.config.vocab_size == len(tokenizer) == rows
    cut = {task: weights(folder) for task, folder in experts(llama).items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        cut["chat"][name] = cut["chat"][name][:rows]
    expected = build_bank(cut, llama / "base", method=CART()).merge()
    assert all(torch.equal(value, expected[name]) for name, value in weights(output).items())
    analysis = ["analyze", *options(llama), "--model.crop", "true", "--ratios", "[0.5]"]
    analysis += ["--matrices", '["*.q_proj.weight"]', "--output", str(tmp_path / "analysis")]
    assert main(analysis) == 0


def test_excluded_vocabulary_is_the_bases(language_models: Any, llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    language_models.add_tokens(llama / "experts" / "chat", "<think>")
    output = tmp_path / "merged"
    patterns = '["*embed_tokens*", "lm_head*"]'
    assert main(["merge", *options(llama), "--model.exclude", patterns, "--output", str(output)]) == 0
    model, base = language_models.load(output), weights(llama / "base")
    assert torch.equal(model.lm_head.weight, base["lm_head.weight"])
    assert torch.equal(model.get_input_embeddings().weight, base["model.embed_tokens.weight"])
    assert len(AutoTokenizer.from_pretrained(output)) == model.config.vocab_size == len(base["lm_head.weight"])


# peft asks a transformers of today what it used to ask.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_lora_experts(language_models: Any, made: Path, tmp_path: Path) -> None:
    expected = {}
    for i, task in enumerate(("chat", "code", "math")):
        language_models.save_adapter(made / "llama" / "base", tmp_path / "experts" / task, seed=i)
        expected[task] = open_checkpoint(tmp_path / "experts" / task, base=open_checkpoint(made / "llama" / "base"))
    (tmp_path / "base").symlink_to(made / "llama" / "base")
    output = tmp_path / "merged"
    assert main(["merge", *options(tmp_path, "TaskArithmetic"), "--output", str(output)]) == 0
    language_models.load(output)
    bank = build_bank(expected, open_checkpoint(made / "llama" / "base"), method=TaskArithmetic())
    assert all(torch.equal(value, bank.weight(name)) for name, value in weights(output).items())
    assert not (output / "adapter_config.json").exists()


def test_export_without_a_network(made: Path, tmp_path: Path) -> None:
    arguments = options(made / "llama")
    assert main(["export", *arguments, "--output", str(tmp_path / "bank")]) == 0
    bank = build_bank(experts(made / "llama"), made / "llama" / "base", method=CART())
    for form, expected in (("merged", bank.merge()), ("task", bank.expert("code"))):
        more = ["--task", "code"] if form == "task" else []
        file = tmp_path / f"{form}.safetensors"
        saved = ["--model.bank", str(tmp_path / "bank"), "--format", form, *more]
        assert main(["export", *saved, "--output", str(file)]) == 0
        found = load_file(file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    merged = tmp_path / "merged"
    assert main(["merge", "--model.bank", str(tmp_path / "bank"), "--output", str(merged)]) == 0
    assert weights(merged).keys() == bank.origin.keys()


def merge_half(arguments: list[str], half: Path) -> None:
    """What the process does that is killed: it stops after three weights, and leaves the file `half`."""
    inner = WeightStream.stream

    def stream(*options: Any, **more: Any) -> Any:
        for i, one in enumerate(inner(*options, **more)):
            if i == 3:
                half.touch()
                time.sleep(60)
            yield one

    WeightStream.stream = stream  # type: ignore[method-assign]
    main(arguments)


def test_a_killed_merge_leaves_nothing_that_looks_whole(
    language_models: Any, made: Path, tmp_path: Path, forks: Any
) -> None:
    """Killed when the first weights are written; the next merge clears up."""
    output = tmp_path / "out" / "merged"
    arguments = ["merge", *options(made / "llama"), "--output", str(output), "--max_shard_size", "6KB"]
    half = tmp_path / "half"
    process = forks.start(merge_half, arguments, half)
    wait_until(lambda: half.exists() or not process.is_alive())
    assert half.exists(), forks.said.read_text()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not output.exists()
    assert all(path.name.startswith(".") for path in output.parent.iterdir())
    assert main(arguments) == 0
    language_models.load(output)
    assert list(output.parent.iterdir()) == [output]


def test_bad_input(language_models: Any, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "merged"
    there = ["--output", str(output)]
    line = refused(capsys, "merge", *options(llama), *there, "--max_shard_size", "much")
    assert "max_shard_size is 'much', expected a size such as 5GB" in line
    line = refused(capsys, "merge", *options(llama), "--output", str(tmp_path / "merged.pt"))
    assert "merged.pt: expected a name that ends in .safetensors, or the name of a folder" in line
    output.mkdir()
    assert f"{output} exists: pass --overwrite" in refused(capsys, "merge", *options(llama), *there)
    output.rmdir()
    index = llama / "experts" / "code" / "model.safetensors.index.json"
    shard = json.loads(index.read_text())["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    (index.parent / shard).unlink()
    line = refused(capsys, "merge", *options(llama), *there)
    assert f"expert code: {index} names {shard}, which is missing" in line
    shutil.rmtree(index.parent)
    shutil.rmtree(llama / "experts" / "math")
    deeper = language_models.config("llama", len(language_models.tokenizer()), tied=False, layers=3)
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(deeper).bfloat16().save_pretrained(index.parent, max_shard_size="6KB")
    line = refused(capsys, "merge", *options(llama), *there)
    assert "model.layers.2." in line
    assert str(llama / "experts" / "chat") in line
    assert not output.exists()


def test_without_a_base_what_is_excluded_is_left_out(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model.experts", str(made / "llama" / "experts"), "--model.method", "CART"]
    more = ["--model.exclude", '["lm_head*"]', "--output", str(tmp_path / "merged")]
    assert main(["merge", *arguments, *more]) == 0
    assert "lm_head.weight" not in weights(tmp_path / "merged")
    assert "not written, for want of a base: lm_head.weight" in capsys.readouterr().err
