"""What is brought and does not fit: one clear line from every verb that meets it, and nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge.cli.main import main

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line of an error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main(list(arguments)) == 2
        *progress, line = capsys.readouterr().err.splitlines()
        assert all(one.startswith(("not merged, ", "ham: 13 texts in ")) for one in progress)
        assert line.startswith("lit_merge: error: ")
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run


@pytest.fixture
def llama(language_models: Any, tmp_path: Path) -> Path:
    language_models.save(tmp_path, tasks=("code", "math"))
    return tmp_path


MERGE = ("--model.experts", "experts", "--model.base", "base", "--model.method", "TaskArithmetic")


def shard_of(folder: Path) -> tuple[Path, Path]:
    """The index of a folder, and one of its shards."""
    index = folder / "model.safetensors.index.json"
    return index, folder / sorted(json.loads(index.read_text())["weight_map"].values())[-1]


def test_a_shard_that_is_missing(llama: Path, refused: Refused) -> None:
    index, shard = shard_of(Path("experts") / "code")
    shard.unlink()
    shown = f"{index} names {shard.name}, which is missing: copy or download it again"
    assert shown in refused("inspect", "experts/code")
    assert shown in refused("merge", *MERGE, "--output", "merged")
    assert shown in refused("merge", *MERGE, "--dry-run")


def test_a_shard_of_another_model(llama: Path, refused: Refused) -> None:
    _, shard = shard_of(Path("experts") / "code")
    save_file({f"other.{one}": value for one, value in load_file(shard).items()}, shard)
    for arguments in (["inspect", "experts/code"], ["merge", *MERGE, "--output", "m"], ["merge", *MERGE, "--dry-run"]):
        line = refused(*arguments)
        assert str(shard) in line
        assert "it is a shard of another model; copy or download it again" in line


def test_another_depth(language_models: Any, llama: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import LlamaForCausalLM

    shutil.rmtree("experts/math")
    deeper = language_models.config("llama", len(language_models.tokenizer()), tied=False, layers=3)
    LlamaForCausalLM(deeper).bfloat16().save_pretrained("experts/math")
    line = refused("merge", *MERGE, "--output", "merged")
    assert "has no weight model.layers.2." in line
    assert "all must be fine-tuned from one checkpoint" in line
    assert "these do not fit together, in 9 ways" in refused("merge", *MERGE, "--dry-run")


# peft asks a transformers of today what it used to ask.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_adapter_of_another_base(
    language_models: Any, llama: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    language_models.save(llama / "gpt", "gpt2", tied=True, tasks=())
    shutil.rmtree("experts")
    language_models.save_adapter(Path("base"), Path("experts") / "code", 0)
    other = ["--model.experts", "experts", "--model.method", "TaskArithmetic", "--model.base", "gpt/base"]
    for more in (["--output", "merged"], ["--dry-run"]):
        line = refused("merge", *other, *more)
        assert "expert code: experts/code is a LoRA of another base than gpt/base" in line
        assert "that has no model.layers.0." in line
        assert "give the model that it was trained on, base, as base (--model.base)" in line
    assert "give the model that it was trained on" in refused("merge", *other[:4], "--output", "merged")
    # Its own weights can be looked at without any base.
    assert main(["inspect", "experts/code"]) == 0
    assert "lora_A" in capsys.readouterr().out
    assert main(["inspect", "experts/code", "--json"]) == 0
    assert all("lora_" in name for name in json.loads(capsys.readouterr().out))


def test_texts_among_images(texts: Any, tiny: Any, refused: Refused) -> None:
    text = texts.folder("bert", "ham")
    mixed = ["--model.experts.alpha", tiny.experts["alpha"], "--model.experts.ham", text, "--model.method", "CART"]
    network = ["--model.network", "OpenClipImageEncoder", "--model.network.config", tiny.network]
    network += ["--model.network.heads", tiny.heads]
    data = ["--data", "Suite", "--data.path", tiny.suite]
    for arguments in (["merge", *mixed, "--output", "m"], ["fit", *mixed, *network, *data, "--run", "run"]):
        line = refused(*arguments)
        assert text in line or tiny.experts["alpha"] in line
        assert "has no weight" in line
        assert "all must be fine-tuned from one checkpoint" in line
    line = refused(
        "fit", "--model.experts.alpha", text, "--model.method", "WeightAveraging", *network, *data, "--run", "r"
    )
    assert "take the configuration that the experts were trained with" in line


@pytest.mark.parametrize(("width", "classes"), [(15, 3), (16, 2)])
def test_heads_that_do_not_fit(width: int, classes: int, tiny: Any, tmp_path: Path, refused: Refused) -> None:
    heads = load_file(tiny.heads) | {"alpha": torch.ones(classes, width)}
    save_file(heads, tmp_path / "heads.safetensors", {"logit_scale": "16"})
    line = refused(
        *("test", "--model.experts.alpha", tiny.experts["alpha"], "--model.method", "WeightAveraging"),
        *("--model.network", "OpenClipImageEncoder", "--model.network.config", tiny.network),
        *("--model.network.heads", "heads.safetensors", "--data", "ImageFolders", "--data.image_size", "16"),
        *("--data.adapt.alpha", tiny.adapt_folders["alpha"], "--data.test.alpha", tiny.test_folders["alpha"]),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--output", "report.json"),
    )
    if width == 15:
        assert "heads.safetensors: head alpha is 15 wide, the encoder's features 16: give heads that were made" in line
    else:
        assert f"{tiny.test_folders['alpha']} has 3 class folders, the head of task alpha 2 classes" in line


def test_class_names_in_another_encoding(texts: Any, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "names.txt").write_bytes("hâm\nspam\n".encode("latin-1"))
    table = texts.tables("test")["ham"]
    line = refused(
        *("test", "--model.experts.ham", texts.folder("bert", "ham"), "--model.method", "WeightAveraging"),
        *("--model.network", "HuggingFaceTextEncoder", "--model.network.config", texts.folder("bert")),
        *(
            "--data",
            "TextFiles",
            "--data.adapt.ham",
            table,
            "--data.test.ham",
            table,
            "--data.classes.ham",
            "names.txt",
        ),
        *("--data.tokenizer", texts.folder("bert"), "--trainer.accelerator", "cpu", "--output", "report.json"),
        *("--trainer.enable_progress_bar", "false"),
    )
    assert "names.txt (class names of task ham) is no text in UTF-8" in line
    assert "save it in UTF-8" in line


def test_an_output_that_holds_the_configuration(refused: Refused) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("model:\n  experts: {a: a.safetensors}\n  method: CART\n")
    for arguments in (["fit", "--run"], ["merge", "--output"], ["sweep", "--output"]):
        line = refused(arguments[0], "--config", "run/config.yaml", arguments[1], "run", "--overwrite")
        assert "run" in line
        assert "config.yaml" in line or "is no sweep" in line


@pytest.mark.parametrize("part", ["model", "trainer"])
def test_a_part_of_a_configuration_that_is_empty(part: str, tmp_path: Path, refused: Refused) -> None:
    # As a file that was cut short may end.
    (tmp_path / "c.yaml").write_text(f"seed_everything: 3\n{part}:\n  ")
    said = refused("merge", "--config", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "o.safetensors"))
    assert f"{part} is empty in the configuration: give it options, or leave it out" in said
