"""What docs/formats.md shows runs on real files of the real libraries."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_merge import WeightAveraging, build_bank
from lit_merge.checkpoints import open_checkpoint
from lit_merge.cli.main import main

TEXT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
def test_commands_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertModel

    monkeypatch.chdir(tmp_path)
    sizes = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    models = [BertModel(BertConfig(**sizes)) for _ in range(3)]
    torch.save(models[0].state_dict(), "base.pt")
    models[1].save_pretrained("second", max_shard_size="1KB")
    adapted = get_peft_model(models[0], LoraConfig(r=2, target_modules=["query"]))
    for name, value in adapted.named_parameters():
        value.data += torch.randn_like(value) * ("lora_B" in name)
    adapted.save_pretrained("lora")
    main(["convert", "second", "--output", "first.safetensors"])
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    model = yaml.safe_load(block)["model"]
    merged = build_bank(model["experts"], model["base"], method=WeightAveraging()).merge()
    name = "encoder.layer.0.attention.self.query.weight"
    expected = (2 * models[1].state_dict()[name] + adapted.merge_and_unload().state_dict()[name]) / 3
    torch.testing.assert_close(merged[name], expected)
    commands = re.findall(r"^lit-merge (.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert open_checkpoint("third.safetensors").dtypes[name] == torch.bfloat16
    assert open_checkpoint("shards").shapes == open_checkpoint("base.safetensors").shapes


def test_one_merge_whatever_the_format(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verb merge, with decompositions that are kept, on a folder of experts of three formats."""
    folder = tmp_path / "experts"
    (folder / "gamma").mkdir(parents=True)
    torch.save(load_file(tiny.experts["alpha"]), folder / "alpha.pt")
    weights = {f"module.{name}": value for name, value in load_file(tiny.experts["beta"]).items()}
    torch.save({"epoch": 1, "state_dict": weights}, folder / "beta.ckpt", _use_new_zipfile_serialization=False)
    assert (
        main(
            ["convert", tiny.experts["gamma"], "--output", f"{folder}/gamma", "--max_shard_size", "9KB", "--overwrite"]
        )
        == 0
    )
    network = ["--model.network", "OpenClipImageEncoder", "--model.network.config", tiny.network]
    network += ["--model.network.heads", tiny.heads, "--model.method", "CART", "--model.base", tiny.base]
    network += ["--model.decompositions", str(tmp_path / "kept")]
    for name, experts in (("a", f"{tiny.root}/experts"), ("b", str(folder)), ("c", str(folder))):
        assert main(["merge", "--model.experts", experts, *network, "--output", f"{tmp_path}/{name}.safetensors"]) == 0
    expected = load_file(tmp_path / "a.safetensors")
    for name in ("b", "c"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(found[weight], value) for weight, value in expected.items())
    assert len(list((tmp_path / "kept").iterdir())) == 2  # those of the other files, and those of these
    shard = sorted((folder / "gamma").glob("*.safetensors"))[1]
    shard.unlink()
    capsys.readouterr()
    assert main(["merge", "--model.experts", str(folder), *network, "--output", f"{tmp_path}/d.safetensors"]) == 2
    assert f"expert gamma: {folder}/gamma/model.safetensors.index.json names {shard.name}" in capsys.readouterr().err
    assert not (tmp_path / "d.safetensors").exists()
