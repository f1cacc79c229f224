"""The verbs, on real files, through the front door that `python -m lit_merge` uses."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lit_merge import Suite, TaskBank
from lit_merge.cli.main import main

Config = Callable[..., str]


@pytest.fixture
def config(tiny: Any, tmp_path: Path) -> Config:
    """config(**sections): path of a configuration of the tiny zoo with some sections replaced."""

    def write(**changes: Any) -> str:
        content = {
            "seed_everything": 0,
            "trainer": {"enable_progress_bar": False, "accelerator": "cpu"},
            "model": {
                "experts": dict(tiny.experts),
                "base": tiny.base,
                "network": {
                    "class_path": "OpenClipImageEncoder",
                    "init_args": {"config": tiny.network, "heads": tiny.heads},
                },
                "method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5, "scaling": 1.0}},
                "stages": [{"granularity": "tied", "steps": 2, "lr": 0.05}, {"granularity": "layer", "steps": 2}],
            },
            "data": {"class_path": "Suite", "init_args": {"path": tiny.suite, "batch_size": 4}},
        }
        for dotted, value in changes.items():
            *parents, last = dotted.split("__")
            place: Any = content
            for parent in parents:
                place = place[parent]
            place[last] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must end with exit code 2 and one line; returns the line."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"lit_merge: error: [^\n]+\n", said.err), said.err
    return said.err


def test_fit_leaves_a_whole_run_and_says_what_it_did(
    config: Config, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "one"
    assert main(["fit", "--config", config(), "--run", str(run)]) == 0
    table = capsys.readouterr().out
    names = {"config.yaml", "versions.json", "coefficients.csv", "bank", "metrics.json", "metrics.csv", "table.txt"}
    pictures = {f"{name}.{suffix}" for name in ("accuracy", "training") for suffix in ("png", "svg")}
    assert names | pictures | {"coefficients", "digests.json", "guard.csv", "log", "samples.jsonl"} == {
        path.name for path in run.iterdir()
    }
    assert all(task in table for task in tiny.tasks)
    for heading in ("pretrained", "expert", "adapted", "entropy", "normalised", "Experts together"):
        assert heading in table
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["model"]["method"]["init_args"]["rank_ratio"] == 0.5
    # The bank of the run, tested by another command, scores what the run reported, to the last image.
    metrics = json.loads((run / "metrics.json").read_text())
    scores = tmp_path / "scores.json"
    assert main(["test", "--config", config(), "--model.bank", str(run / "bank"), "--output", str(scores)]) == 0
    again = json.loads(scores.read_text())
    for task in tiny.tasks:
        assert again["tasks"][task]["adapted_accuracy"] == metrics["tasks"][task]["adapted_accuracy"]
        assert again["tasks"][task]["adapted_entropy"] == metrics["tasks"][task]["adapted_entropy"]


def test_the_resolved_configuration_repeats_the_run(config: Config, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["fit", "--config", config(), "--run", str(first)]) == 0
    assert main(["fit", "--config", str(first / "config.yaml"), "--run", str(second)]) == 0
    assert (first / "coefficients.csv").read_text() == (second / "coefficients.csv").read_text()


def test_options_go_over_the_file(config: Config, tmp_path: Path) -> None:
    for ratio in ("0.1", "0.5"):
        output = str(tmp_path / ratio)
        options = ["--model.method.rank_ratio", ratio, "--output", output]
        assert main(["export", "--config", config(), *options]) == 0
    ranks = [set(TaskBank.load(tmp_path / ratio).ranks.values()) for ratio in ("0.1", "0.5")]
    assert ranks == [{3}, {16}]


def test_merge_and_export_need_no_data(config: Config, tiny: Any, tmp_path: Path) -> None:
    path = config(data=None)
    merged, one = tmp_path / "merged.safetensors", tmp_path / "one.safetensors"
    assert main(["merge", "--config", path, "--output", str(merged)]) == 0
    full = ["--model.method.rank_ratio", "1.0", "--format", "task", "--task", "beta"]
    assert main(["export", "--config", path, "--output", str(one), *full]) == 0
    expert = load_file(tiny.experts["beta"])
    assert load_file(merged).keys() == expert.keys()
    for name, value in load_file(one).items():
        torch.testing.assert_close(value, expert[name], atol=1e-5, rtol=1e-5)


def test_predict_writes_a_line_per_image(
    config: Config, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "predictions.csv"
    assert main(["predict", "--config", config(), "--output", str(output)]) == 0
    lines = output.read_text().splitlines()
    assert len(lines) == 1 + 23 + 17 + 26
    assert lines[0].startswith("task,index,file,class_1,class_2,class_3,class_4,class_5,probability_1")
    assert {line.count(",") for line in lines} == {lines[0].count(",")}
    # Images without a label are enough.
    data = {"class_path": "ImageFolders", "init_args": {"adapt": tiny.adapt_folders}}
    output = tmp_path / "predictions.jsonl"
    bar = ["--trainer.enable_progress_bar", "true"]
    assert main(["predict", "--config", config(data=data), "--output", str(output), *bar]) == 0
    said = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["file"] for row in said if row["task"] == "gamma"] == [f"{i:03d}.png" for i in range(13)]
    assert "predicting: " in capsys.readouterr().err


def test_a_test_does_not_look_through_the_inputs_to_adapt_on(
    config: Config, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Suite, "unlabelled", lambda data: pytest.fail("nothing is adapted"))
    assert main(["test", "--config", config(model__stages=None), "--trainer.limit_test_batches", "2"]) == 0


def test_predictions_of_another_kind(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "predict", "--config", config(), "--output", str(tmp_path / "p.xlsx"))
    assert ".csv, .parquet, .jsonl" in line
    several = ["--trainer.devices", "2", "--output", str(tmp_path / "p.csv")]
    assert "from one process" in refused(capsys, "predict", "--config", config(), *several)
    too_few = ["--trainer.limit_predict_batches", "1e-30", "--output", str(tmp_path / "p.csv")]
    assert "limit_predict_batches" in refused(capsys, "predict", "--config", config(), *too_few)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_loggers_by_name(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = [{"class_path": "CSVLogger", "init_args": {"save_dir": place, "name": "csv"}} for place in ("run", "logs")]
    path = config(trainer__logger=listed, trainer__log_every_n_steps=1)
    assert main(["fit", "--config", path, "--run", "run"]) == 0
    one, two = (Path(place, "csv", "version_0", "metrics.csv").read_text() for place in ("run", "logs"))
    assert one == two
    assert one.count("\n") == 1 + 4


def test_a_logger_whose_package_is_missing(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    path = config(trainer__logger={"class_path": "TensorBoardLogger", "init_args": {"save_dir": "logs"}})
    line = refused(capsys, "fit", "--config", path, "--run", str(tmp_path / "run"))
    assert "tensorboard" in line
    assert "pip install" in line


def test_callbacks_by_name(config: Config, tmp_path: Path) -> None:
    small, run = tmp_path / "small", tmp_path / "run"
    listed = [
        {"class_path": "RankSchedule", "init_args": {"ratios": {0: 0.5, 2: 0.25}}},
        {"class_path": "CompressionExport", "init_args": {"path": str(small), "rank_ratio": 0.1, "dtype": "float16"}},
    ]
    path = config(trainer__callbacks=listed)
    assert main(["fit", "--config", path, "--run", str(run)]) == 0
    assert set(TaskBank.load(run / "bank").ranks.values()) == {8}
    assert set(TaskBank.load(small).ranks.values()) == {3}


def test_existing_output_needs_overwrite(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "there"
    output.write_text("mine")
    for verb, option in (("fit", "--run"), ("merge", "--output"), ("export", "--output"), ("predict", "--output")):
        line = refused(capsys, verb, "--config", config(), option, str(output))
        assert str(output) in line
        assert "--overwrite" in line
    line = refused(capsys, "merge", "--config", config(), "--output", str(output), "--overwrite")
    assert f"{output} is a file, which a folder does not replace" in line
    assert output.read_text() == "mine"
    file = output.rename(tmp_path / "there.safetensors")
    arguments = ["export", "--config", config(), "--format", "merged", "--output", str(file), "--overwrite"]
    assert "was not written by `lit-merge merge`" in refused(capsys, *arguments)
    assert file.read_text() == "mine"
    file.unlink()
    assert main(arguments) == 0
    assert main(["export", "--config", config(), "--format", "merged", "--output", str(file), "--overwrite"]) == 0
    assert load_file(file)


def damage(kind: str, path: Path, good: str) -> None:
    content = Path(good).read_bytes()
    weights = load_file(good)
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("these are no weights at all")
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    elif kind == "key":
        weights["extra.weight"] = torch.zeros(2)
        save_file(weights, path)
    elif kind == "shape":
        save_file(weights | {name: torch.zeros(3, 2)}, path)
    elif kind == "dtype":
        save_file(weights | {name: weights[name].int()}, path)
    elif kind in ("nan", "inf"):
        weights[name][0, 0] = float(kind)
        save_file(weights, path)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", ["no such file"]),
        ("empty", ["empty"]),
        ("text", ["not a safetensors file"]),
        ("cut", ["cut short"]),
        ("lfs", ["Git LFS", "git lfs pull"]),
        ("key", ["extra.weight", "alpha.safetensors"]),
        ("shape", ["c_fc.weight", "[3, 2]", "[64, 32]", "alpha.safetensors"]),
        ("dtype", ["c_fc.weight", "int32", "float32", "alpha.safetensors"]),
        ("nan", ["c_fc.weight", "NaN or infinity"]),
        ("inf", ["c_fc.weight", "NaN or infinity"]),
    ],
)
def test_bad_experts(
    kind: str, said: list[str], config: Config, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.safetensors"
    damage(kind, bad, tiny.experts["beta"])
    path = config(model__experts={**tiny.experts, "beta": str(bad)})
    # The reader is one for all verbs: what headers show, and what only values show, is refused by fit too.
    both = (("fit", "--run"), ("merge", "--output"))
    for verb, option in both if kind in ("shape", "nan") else both[1:]:
        line = refused(capsys, verb, "--config", path, option, str(tmp_path / "out"))
        for text in ["bad.safetensors", *said]:
            assert text in line
    assert {p.name for p in tmp_path.iterdir()} <= {"config.yaml", "bad.safetensors"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.method", "CARTT"], ["'CARTT'", "nearest is CART;"]),
        (["--model.method.rank_ration", "0.1"], ["rank_ration", "nearest is rank_ratio"]),
        (["--model.method.rank_ratio", "0"], ["rank_ratio=0", "(0, 1]"]),
        (["--model.method.rank_ratio", "1.5"], ["rank_ratio=1.5", "(0, 1]"]),
        (["--model.method.rank_ratio", "much"], ["model.method.rank_ratio", "a number", "much"]),
        (["--model.stagess", "3"], ["model.stagess", "nearest is model.stages"]),
        (["--trainer.max_step", "3"], ["trainer.max_step'", "nearest is trainer.max_steps"]),
        (["--data.protocol", "inductiv"], ["data.protocol", "nearest is inductive"]),
        (["--data", "Suitee"], ["'Suitee'", "nearest is Suite;"]),
        (["--data.path", "nowhere"], ["nowhere", "no such file"]),
        (["--model.network.config", "ViT-B-31"], ["'ViT-B-31'", "nearest is ViT-B-32"]),
        (["--model.objective", "Entropi"], ["'Entropi'", "nearest is Entropy"]),
        (["--model.stages", '[{"granularity": "tide"}]'], ["granularity", "nearest is tied"]),
        (["--model.bounds", "[1, 0]"], ["bounds", "lower"]),
        (["--config", "absent.yaml"], ["absent.yaml", "no such configuration file"]),
        (["--trainer.accelerator", "gpuu"], ["trainer", "'gpuu'", "cpu"]),
        (["--trainer.devices", "0"], ["trainer", "devices"]),
        (["--trainer.limit_train_batches", "1e-30"], ["trainer: ", "limit_train_batches"]),
        (["--trainer.precision", "foo"], ["trainer.precision", "bf16-mixed", "foo"]),
        (["--trainer.precision", "bf16-true"], ["bf16-true", "use bf16-mixed"]),
        (["--ckpt_path", "absent.ckpt"], ["absent.ckpt", "no such file"]),
        (["--model.experts", "5"], ["5: no such folder of experts"]),
        (["--trainer.callbacks", "RankSchedul"], ["'RankSchedul'", "nearest is RankSchedule"]),
        (["--trainer.callbacks", "RankSchedule"], ["error: RankSchedule: expected ratios or energies"]),
        (["--trainer.callbacks", "EarlyStopping"], ["error: trainer.callbacks: EarlyStopping needs monitor"]),
        (["--trainer.callbacks", '[{"class_path": "EarlyStopping"}]'], ["EarlyStopping needs monitor"]),
        (["--trainer.logger", "CSVLogger"], ["error: trainer.logger: CSVLogger needs save_dir"]),
        (
            ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "balanc"],
            ["error: trainer.callbacks: EarlyStopping: ", "`balanc` which is not available", "`balance`"],
        ),
        (["--trainer.callbacks", "Timer"], ["error: Timer: "]),
    ],
)
def test_bad_configurations(
    options: list[str], said: list[str], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "fit", "--config", config(), "--run", str(tmp_path / "out"), *options)
    for text in said:
        assert text in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [1", ["not valid YAML"]),
        ("just words", ["expected a YAML mapping"]),
        ("model: {metod: {class_path: CART}}", ["'model.metod'", "nearest is model.method"]),
        ("{}", ["give --model.network"]),
        (
            "model: {network: {class_path: OpenClipImageEncoder, init_args: {config: '${nowhere}'}}}",
            ["bad.yaml: model.network.init_args.config: Interpolation key 'nowhere' not found"],
        ),
        ("model: {network: {class_path: OpenClipImageEncoder, init_args: {config: '${oc.env:NONE}'}}}", ["'NONE'"]),
    ],
)
def test_bad_configuration_files(
    text: str, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    line = refused(capsys, "fit", "--config", str(path), "--run", str(tmp_path / "out"))
    for expected in said:
        assert expected in line


def test_unknown_section(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(config())
    path.write_text(path.read_text() + "modle: 3\n")
    line = refused(capsys, "fit", "--config", str(path), "--run", str(tmp_path / "out"))
    assert "'modle'" in line
    assert "nearest is model" in line


@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
def test_tasks_heads_and_data_must_agree(
    config: Config, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = load_file(tiny.heads)
    fewer = tmp_path / "heads.safetensors"
    save_file({task: heads[task] for task in ("alpha", "gamma")}, fewer)
    run = ["--run", str(tmp_path / "out")]
    line = refused(capsys, "fit", "--config", config(), *run, "--model.network.heads", str(fewer))
    assert "no head for task 'beta'" in line
    two = {task: tiny.experts[task] for task in ("alpha", "gamma")}
    line = refused(capsys, "fit", "--config", config(model__experts=two), *run)
    assert "'beta'" in line
    line = refused(capsys, "fit", "--config", config(), *run, "--data.tasks", '["alpha", "beta"]')
    assert "'gamma'" in line


def test_bad_image_folders(config: Config, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "cut.png").write_bytes(next(Path(tiny.adapt_folders["beta"]).iterdir()).read_bytes()[:40])
    for folder, said in (
        (tmp_path / "absent", "no such folder"),
        (empty, "holds no image"),
        (broken, "cut.png cannot be read"),
    ):
        folders = {**tiny.adapt_folders, "beta": str(folder)}
        data = {
            "class_path": "ImageFolders",
            "init_args": {"adapt": folders, "test": tiny.test_folders, "image_size": 16, "batch_size": 4},
        }
        line = refused(capsys, "fit", "--config", config(data=data), "--run", str(tmp_path / "out"))
        assert said in line
        assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_fit_goes_on_from_a_checkpoint(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"dirpath": str(tmp_path / "steps"), "every_n_train_steps": 1, "filename": "{step}", "save_top_k": -1}
    save = {"class_path": "ModelCheckpoint", "init_args": options}
    path = config(trainer__callbacks=[save], trainer__enable_checkpointing=True)
    assert main(["fit", "--config", path, "--run", str(tmp_path / "whole")]) == 0
    again = ["fit", "--config", path, "--run", str(tmp_path / "resumed"), "--trainer.callbacks", "null"]
    assert main([*again, "--ckpt_path", str(tmp_path / "steps" / "step=1.ckpt")]) == 0
    whole, resumed = ((tmp_path / run / "coefficients.csv").read_text() for run in ("whole", "resumed"))
    assert resumed == whole
    other = tmp_path / "other.ckpt"
    other.write_text("no checkpoint")
    line = refused(capsys, *again, "--overwrite", "--ckpt_path", str(other))
    assert "other.ckpt is no checkpoint" in line


def test_images_of_another_size(config: Config, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"adapt": tiny.adapt_folders, "test": tiny.test_folders, "image_size": 24, "batch_size": 4}
    path = config(data={"class_path": "ImageFolders", "init_args": options})
    line = refused(capsys, "fit", "--config", path, "--run", str(tmp_path / "out"))
    assert "24 × 24" in line
    assert "squares of 16" in line


def test_unwritable_output(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    line = refused(capsys, "fit", "--config", config(), "--run", str(tmp_path / "file" / "run"))
    assert "cannot be written" in line
    line = refused(capsys, "merge", "--config", config(), "--output", "/proc/merged.safetensors")
    assert "/proc/merged.safetensors cannot be written" in line


@pytest.mark.skipif(sys.platform == "win32", reason="file-size limits are POSIX")
@pytest.mark.parametrize("verb", ["merge", "fit"])
def test_full_disk(verb: str, config: Config, tmp_path: Path, forks: Any) -> None:
    """A file-size limit gives the same failure of a write in its middle as a full disk."""
    where = "--run" if verb == "fit" else "--output"
    assert forks.run(verb, "--config", config(), where, str(tmp_path / "out"), largest_file=20_000) == [2]
    said = forks.said.read_text()
    assert re.fullmatch(r"lit_merge: error: [^\n]+\n", said), said
    assert "could not be written: " in said
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}


def test_a_bank_of_the_same_experts_in_another_order(config: Config, tiny: Any, tmp_path: Path) -> None:
    assert main(["export", "--config", config(), "--output", str(tmp_path / "bank")]) == 0
    said = []
    for i, experts in enumerate((tiny.experts, dict(reversed(tiny.experts.items())))):
        saved = ["--model.bank", str(tmp_path / "bank"), "--output", str(tmp_path / f"{i}.json")]
        assert main(["test", "--config", config(model__experts=experts), *saved]) == 0
        said.append(json.loads((tmp_path / f"{i}.json").read_text()))
    assert said[0] == said[1]


def test_resumes_nothing_from_a_copied_bank_of_other_experts(
    config: Config, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"delta" if task == "alpha" else task: path for task, path in tiny.experts.items()}
    assert main(["export", "--config", config(model__experts=others), "--output", str(tmp_path / "bank")]) == 0
    line = refused(capsys, "test", "--config", config(), "--model.bank", str(tmp_path / "bank"))
    assert "delta" in line
