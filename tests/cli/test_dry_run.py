"""`merge --dry-run`: what a merge would do, from headers alone, with nothing written."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_merge.checkpoints.safetensors_file import SafetensorsFile
from lit_merge.checkpoints.torch_file import TorchFile
from lit_merge.cli.main import main


@pytest.fixture(scope="module")
def made(language_models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = language_models.save(tmp_path_factory.mktemp("dry") / "llama", "qwen2", tied=True)
    return root


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Any, name: str) -> None:
        raise AssertionError(f"{name} of {self.label} is read")

    for reader in (SafetensorsFile, TorchFile):
        monkeypatch.setattr(reader, "read", read)


def planned(capsys: pytest.CaptureFixture[str], root: Path, method: str, *more: str) -> str:
    before = sorted(root.parent.rglob("*"))
    base = ["--model.experts", str(root / "experts"), "--model.base", str(root / "base")]
    assert main(["merge", "--dry-run", *base, "--model.method", method, *more]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "Nothing was merged or written." in said.out
    assert sorted(root.parent.rglob("*")) == before
    return said.out


def test_plan(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, made, "CART", "--model.method.rank_ratio", "0.25")
    assert said.startswith("CART(rank_ratio=0.25")
    for task in ("math", "code", "chat", "base"):
        folder = made / ("" if task == "base" else "experts") / task
        # Whole, however long: this is no terminal.
        assert re.search(rf"^ ?{task} +{re.escape(str(folder))}\S*.* bfloat16", said, re.MULTILINE)
    assert re.search(r"model\.layers\.#\.mlp\.up_proj\.weight +2 +32 × 16 +matrix, rank 4", said)
    assert re.search(r"model\.norm\.weight +1 +16 +the rest", said)
    assert "Decomposed as matrices: 14 of 15 2-D weights (" in said
    assert "); the other 1 are taken as they are. --model.method.matrices says which." in said
    assert "Tied: the output layer is model.embed_tokens.weight (config.json)" in said
    assert re.search(r"Result: 26 weights, [\d.]+ kB; memory about [\d.]+ .B, time about \d+ seconds", said)


def test_matrices_are_chosen(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, made, "CART", "--model.method.matrices", '["*.q_proj.weight"]')
    assert "Decomposed as matrices: 2 of 15 2-D weights (" in said
    assert "14 of 15" in planned(capsys, made, "CART", "--model.method.matrices", "all")


@pytest.mark.parametrize("method", ["WeightAveraging", "TIES", "ESM", "RegMean", "ConsensusTA", "TSVM", "IsoCTS"])
def test_every_method_has_a_plan(method: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(capsys, made, method, "--model.transform", "AWD")
    assert f"{method}" in said.splitlines()[0]
    assert ("looks at unlabelled inputs first" in said) == (method in ("ESM", "RegMean"))
    assert ("decomposes nothing" in said) == (method in ("WeightAveraging", "TIES", "ConsensusTA"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert main(["merge", "--dry-run", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("lit_merge: error: ")
    assert said.err.count("\n") == 1
    return said.out, said.err


def test_every_mismatch_is_listed(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "experts" / "math", tmp_path / "experts" / "math")
    names = [f"layers.{i}.weight" for i in range(30)]
    for task, size in (("one", 3), ("two", 4)):
        save_file({name: torch.zeros(size, 2) for name in names}, tmp_path / f"{task}.safetensors")
    experts = [f"--model.experts.{task}={tmp_path}/{task}.safetensors" for task in ("one", "two")]
    out, err = refused(capsys, *experts, "--model.method", "CART", "--output", str(tmp_path / "merged"))
    assert [line.partition(".")[0] for line in out.splitlines()[:-1]] == [str(i) for i in range(1, 21)]
    assert out.splitlines()[0].startswith("1. layers.0.weight has shape [3, 2] in ")
    assert out.splitlines()[-1] == "… and 10 more"
    assert "do not fit together, in 30 ways" in err
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_planned(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave --model.bank out" in refused(capsys, "--model.bank", "bank")[1]
    experts = ["--model.experts", str(made / "experts")]
    assert "TaskArithmetic needs the pretrained" in refused(capsys, *experts, "--model.method", "TaskArithmetic")[1]
    line = refused(capsys, *experts, "--model.method", "CART", "--model.method.matrices", '["nothing*"]')[1]
    assert "the pattern 'nothing*' matches no 2-D weight" in line
    assert "nothing to merge" in refused(capsys, *experts)[1]


def test_tied_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, task in enumerate(("a", "b", "c")):
        weight = torch.full((4, 4), float(i))
        torch.save({"wte.weight": weight, "lm_head.weight": weight, "h.0.attn.w": weight + 1}, tmp_path / f"{task}.pt")
    experts = [f"--model.experts.{task}={tmp_path}/{task}.pt" for task in ("a", "b", "c")]
    assert main(["merge", "--dry-run", *experts, "--model.method", "WeightAveraging"]) == 0
    assert "Tied: wte.weight = lm_head.weight." in capsys.readouterr().out
