"""Text models through the verbs: adapted, tested and predicted like images."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel

from lit_merge import (
    CART,
    Correction,
    HuggingFaceTextEncoder,
    MergeWarning,
    Stage,
    TextFiles,
    adapt,
    build_bank,
    evaluate,
)
from lit_merge.cli.main import main
from lit_merge.objectives import ExpertAgreement

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


def configuration(texts: Any, kind: str, **data: Any) -> dict[str, Any]:
    tables = {split: texts.tables(split) for split in ("adapt", "test", "validation")}
    return {
        "seed_everything": 0,
        "model": {
            "experts": texts.experts(kind),
            "base": texts.folder(kind),
            "network": {"class_path": "HuggingFaceTextEncoder", "init_args": {"config": texts.folder(kind)}},
            "method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5, "scaling": 1.0}},
            "stages": [{"granularity": "block", "steps": 3, "lr": 0.05}],
        },
        "data": {
            "class_path": "TextFiles",
            "init_args": {"tokenizer": texts.folder(kind), "batch_size": 5, "eval_batch_size": 6} | tables | data,
        },
    }


def write(path: Path, config: dict[str, Any]) -> list[str]:
    path.write_text(yaml.safe_dump(config))
    return ["--config", str(path)]


def test_fit_and_predict(texts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path / "texts.yaml", configuration(texts, "distilbert"))
    run = tmp_path / "run"
    # Off: it might go back to where all coefficients are one.
    guard = [{"class_path": "CollapseGuard", "init_args": {"every_n_steps": 0}}]
    assert main(["fit", *files, "--run", str(run), *QUIET, "--trainer.callbacks", json.dumps(guard)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "not merged, not of the encoder: classifier." in said
    assert "ham: 17 texts in" in said
    lines = list(csv.DictReader((run / "coefficients.csv").read_text().splitlines()))
    # One coefficient for every task and block, and one for what is in none.
    for task in texts.tasks:
        mine = {line["weight"]: line["adapted"] for line in lines if line["task"] == task}
        assert len({value for name, value in mine.items() if name.startswith("distilbert.transformer.layer.1.")}) == 1
        assert len(set(mine.values())) == 3
    assert (run / "coefficients" / "coefficients_end.png").exists()
    assert set(json.loads((run / "metrics.json").read_text())["mean"]) == {"pretrained", "static", "adapted", "expert"}
    # Samples are texts of the tables, word by word, with their labels.
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    test = {
        task: list(csv.DictReader(Path(path).read_text().splitlines())) for task, path in texts.tables("test").items()
    }
    assert {one["task"] for one in samples} == set(texts.tasks)
    for one in samples:
        row = test[one["task"]][one["index"]]
        assert (one["text"], one["label"]) == (row["text"], f"LABEL_{row['label']}")
    assert main(["predict", *files, "--model.bank", str(run / "bank"), "--output", f"{tmp_path}/p.csv", *QUIET]) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["file"] for row in rows if row["task"] == "mood"] == [f"mood-test.csv:{i}" for i in range(13)]
    assert main(["validate", *files, "--model.bank", str(run / "bank"), *QUIET]) == 0


def test_a_process_of_its_own(texts: Any, tmp_path: Path, forks: Any) -> None:
    """Nothing of transformers' own reaches the user."""
    files = write(tmp_path / "texts.yaml", configuration(texts, "bert"))
    command = ["fit", *files, "--run", str(tmp_path / "run"), *QUIET]
    # With a look of the guard before the fit ends.
    command += ["--trainer.callbacks", json.dumps([{"class_path": "CollapseGuard", "init_args": {"every_n_steps": 2}}])]
    assert forks.run(*command, environments=[{"CUDA_VISIBLE_DEVICES": ""}], errors_only=True) == [0]
    said = [line for line in forks.said.read_text().splitlines() if not line.startswith("lit_merge: warning: ")]
    assert [line.partition(":")[0] for line in said] == ["not merged, not of the encoder", *2 * texts.tasks]
    assert "bert.encoder.layer.1.output.dense.weight" in (tmp_path / "run" / "coefficients.csv").read_text()


def test_methods_that_look_at_inputs(texts: Any, tmp_path: Path) -> None:
    config = configuration(texts, "bert")
    config["model"]["method"] = {"class_path": "ESM", "init_args": {"samples": 4, "scaling": 1.0}}
    files = write(tmp_path / "texts.yaml", config)
    with pytest.warns(MergeWarning, match="1 of 14 matrices have no second moments"):  # tables are looked up
        assert main(["merge", *files, "--output", f"{tmp_path}/merged.safetensors", *QUIET]) == 0
    expected = load_file(f"{texts.folder('bert')}/model.safetensors")
    assert load_file(tmp_path / "merged.safetensors").keys() == {f"bert.{name}" for name in expected}


def test_online_and_mixed(texts: Any) -> None:
    network = HuggingFaceTextEncoder(texts.folder("bert"), heads=texts.experts("bert"))
    bank = build_bank(texts.experts("bert"), method=CART(0.5, 1.0), exclude=["classifier.*"])
    tables = texts.tables("test")
    for adapted_on, online in ((tables, True), ({"mixed": tables["topic"]}, False)):
        data = TextFiles(adapted_on, texts.folder("bert"), test=tables, online=online, batch_size=4)
        steps = [Stage("layer", data.steps or 2, 0.01)]
        adapted = adapt(bank, network, data, stages=steps, guard=False, accelerator="cpu", progress=False)
        assert (adapted.coefficients != bank.coefficients).any()
        assert evaluate(adapted, network, data, accelerator="cpu").keys() == set(texts.tasks)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_from_python(texts: Any, kind: str) -> None:
    """Adapted and evaluated without a configuration: the experts' classifiers by their folders."""
    network = HuggingFaceTextEncoder(texts.folder(kind), heads=texts.experts(kind))
    data = TextFiles(texts.tables("adapt"), texts.folder(kind), test=texts.tables("test"), batch_size=4)
    bank = build_bank(texts.experts(kind), method=CART(0.5, 1.0), exclude=["classifier.*"])
    adapted = adapt(
        bank, network, data, stages=[Stage("layer", 2, 0.01)], guard=False, accelerator="cpu", progress=False
    )
    assert adapted.layers[0].startswith(f"{kind}.embeddings.")
    assert evaluate(adapted, network, data, accelerator="cpu")["ham"].images == 13


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("rank", [2, None])
def test_a_correction_of_every_weight(texts: Any, kind: str, rank: int | None) -> None:
    """The experts' files call the encoder's weights by longer names than the encoder does."""
    network = HuggingFaceTextEncoder(texts.folder(kind), heads=texts.experts(kind))
    data = TextFiles(texts.tables("adapt"), texts.folder(kind), test=texts.tables("test"), batch_size=4)
    exclude = [name for name in load_file(f"{texts.folder(kind, 'ham')}/model.safetensors") if "classifier" in name]
    bank = build_bank(texts.experts(kind), method=CART(0.5, 1.0), exclude=exclude)
    stages = [Stage("direction", 3, 0.01, objective=ExpertAgreement())]
    adapted = adapt(
        bank,
        network,
        data,
        stages=stages,
        correction=Correction(rank, 0.01),
        guard=False,
        accelerator="cpu",
        progress=False,
    )
    learnt = {
        f"{kind}.{name}": value for name, value in AutoModel.from_pretrained(texts.folder(kind)).named_parameters()
    }
    corrected = {key.partition("/")[2] for key in adapted.correction}
    # A pooler that classifiers do not ask for is in the file of the base only.
    assert corrected == {name for name in learnt if name in bank.origin}
    moved = 0
    for name in corrected:
        keys = [f"{part}/{name}" for part in ("A", "B", "correction")]
        a, b, whole = (adapted.correction.get(key) for key in keys)
        whole = whole if a is None or b is None else a @ b
        assert whole is not None
        without = replace(adapted, learnt={key: value for key, value in adapted.learnt.items() if key not in keys})
        torch.testing.assert_close(adapted.weight(name), without.weight(name) + whole, rtol=1e-4, atol=1e-6)
        moved += bool(whole.any())
    assert moved > 0.7 * len(corrected)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--data.text", "words", "ham-test.csv has no column 'words'; it has text, label"),
        ("--data.tokenizer", "nowhere", "nowhere: no such folder of a tokenizer"),
        ("--model.exclude", '["head.*"]', "exclude: the pattern 'head.*' matches no weight of the experts"),
        ("--model.exclude", "[]", "is left out of the merge with exclude: [classifier.bias]"),
        ("--data.encoding", "latin-7000", "encoding='latin-7000': there is no such encoding"),
    ],
)
def test_mistakes(
    option: str, value: str, said: str, texts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path / "texts.yaml", configuration(texts, "bert"))
    assert main(["test", *files, option, value, *QUIET]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.yaml"]
