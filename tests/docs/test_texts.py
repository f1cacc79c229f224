"""docs/texts.md: its configurations and commands run on eight small BERT folders and tables of every kind."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lit_merge.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "texts.md").read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"^lit-merge (.*)$", PAGE, re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TASKS = ("reviews", "topics", "questions", "emotions", "intents", "spam", "languages", "sections")
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
STEPS = ["--trainer.max_steps", "2"]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as a table of the kind that the path's suffix names; a folder of datasets without one."""
    import datasets

    path.parent.mkdir(exist_ok=True)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            made = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            made.writeheader()
            made.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)


@pytest.fixture
def place(texts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page speaks of."""
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.chdir(tmp_path)
    for task, source in zip(TASKS, 3 * texts.tasks, strict=False):
        folder = tmp_path / "experts" / task
        shutil.copytree(texts.folder("bert", source), folder)
        weights = load_file(folder / "model.safetensors")
        weights = {name: value + 0.01 * torch.randn_like(value) for name, value in weights.items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with open(texts.tables("test")[source]) as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
        for row in rows:
            row["label"] = int(row["label"])
            if task == "spam":
                row["label"] = f"LABEL_{row['label']}"
        for split in ("texts", "labelled"):
            path = next(part for part in re.findall(rf"{split}/\S+", YAML[0]) if Path(part).stem == task)
            write(tmp_path / path, rows if split == "labelled" else [{"text": row["text"]} for row in rows])
    shutil.copytree(texts.folder("bert"), tmp_path / "pretrained")
    for i, text in enumerate(YAML):
        Path("texts.yaml" if i == 0 else f"{i}.yaml").write_text(text)
    return tmp_path


# Few texts, and experts that were drawn at random: nothing to choose a scale by.
@pytest.mark.filterwarnings("ignore:select=entropy")
def test_commands(place: Path) -> None:
    verbs = [shlex.split(command)[0] for command in COMMANDS]
    assert verbs == ["merge", "fit", "report", "test", "predict", "export", "sweep", "analyze"]
    for command in COMMANDS:
        verb, *options = shlex.split(command)
        more = [] if verb in ("analyze", "report") else [*QUIET, *(STEPS if verb == "fit" else [])]
        # One point each: the grid is of test_sweep.
        more += ["--rank_ratios", "[0.16]", "--scalings", "[1.0]"] if verb == "sweep" else []
        assert main([verb, *options, *more]) == 0, command
    # What init finds by itself is what the page names.
    assert main(["init", "experts", "--output", "found.yaml"]) == 0
    found, page = yaml.safe_load(Path("found.yaml").read_text()), yaml.safe_load(YAML[0])
    assert found["model"]["experts"] == page["model"]["experts"]
    assert {name: found["data"]["init_args"][name] for name in page["data"]["init_args"]} == page["data"]["init_args"]
    report = json.loads((place / "runs" / "texts" / "metrics.json").read_text())
    assert list(report["tasks"]) == list(TASKS)
    assert set(report["mean"]) == {"pretrained", "static", "adapted", "expert"}
    rows = list(csv.DictReader((place / "predictions.csv").read_text().splitlines()))
    assert {row["file"].partition(":")[0] for row in rows} == {
        Path(path).name for path in re.findall(r"labelled/\S+", YAML[0])
    }
    assert {row["class_1"] for row in rows if row["task"] == "spam"} <= {"LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"}
    for file in ("merged.safetensors", "spam.safetensors"):
        assert not any("classifier" in name for name in load_file(place / file))
    said: dict[str, Any] = {}
    exec(PYTHON[0], said)
    merged = load_file(place / "merged.safetensors")
    state = said["model"].state_dict()
    assert all(torch.equal(state[name], value) for name, value in merged.items())
    assert set(state) - set(merged) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("number", [1, 2])
def test_other_blocks(number: int, place: Path) -> None:
    sizes = {task: len(load_file(place / "experts" / task / "model.safetensors")["classifier.bias"]) for task in TASKS}
    save_file({f"{task}.weight": torch.randn(n, 16) for task, n in sizes.items()}, place / "heads.safetensors")
    assert len(YAML) == 3
    files = ["--config", "texts.yaml", "--config", f"{number}.yaml", "--output", "report.json"]
    assert main(["test", *files, *QUIET]) == 0
    assert len(json.loads((place / "report.json").read_text())["tasks"]) == 8
