"""Configurations of the command line: every file and value as it is written, or refused in one line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_merge import MergeError, TaskBank
from lit_merge.cli.main import main
from lit_merge.cli.parsing import building

Refused = Callable[..., str]
NAMES = ["no", "null", "1", "1.0", "0x10", "1_000", "on", "~", "2024-01-01", "true", "a.b", "[x]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three small experts."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name in "xyz":
        save_file({"w": torch.randn(4, 4, generator=generator)}, tmp_path / f"{name}.safetensors")
    return tmp_path


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line of an error of `merge`, which writes nothing."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["merge", "--output", "out.safetensors", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not Path("out.safetensors").exists()
        return line.removeprefix("lit_merge: error: ")

    return run


def config(experts: dict[str, str], method: str = "WeightAveraging") -> str:
    lines = "".join(f"    {name}: {path}\n" for name, path in experts.items())
    return f"model:\n  method: {method}\n  experts:\n{lines}"


PLAIN = config({"a": "x.safetensors", "b": "y.safetensors"})
TWICE = PLAIN + "    a: z.safetensors\n"


def test_a_task_that_stands_twice(refused: Refused) -> None:
    Path("twice.yaml").write_text(TWICE)
    Path("plain.yaml").write_text(PLAIN)
    Path("method.yaml").write_text("class_path: CART\ninit_args:\n  scaling: 1\n  scaling: 2\n")
    said = "the key 'a' stands twice, in line 4 and in line 6: remove one of them"
    assert refused("--config", "twice.yaml") == f"twice.yaml: {said}"
    assert refused("--config=twice.yaml", "--config", "plain.yaml") == f"twice.yaml: {said}"
    assert refused("--config", "plain.yaml", "--config", "twice.yaml") == f"twice.yaml: {said}"
    assert "the key 'scaling' stands twice, in line 3 and in line 4" in refused(
        "--config", "plain.yaml", "--model.method", "method.yaml"
    )
    for value in ('{"a": "x.safetensors", "a": "y.safetensors"}', "{a: x.safetensors, a: y.safetensors}"):
        line = refused("--model.method", "WeightAveraging", "--model.experts", value)
        assert line.startswith(f"{value}: the key 'a' stands twice")


@pytest.mark.parametrize("verb", ["analyze", "leaks"])
def test_other_verbs_refuse_it_too(verb: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("twice.yaml").write_text(TWICE)
    assert main([verb, "--config", "twice.yaml", *(["--output", "o"] if verb == "analyze" else [])]) == 2
    assert "twice.yaml: the key 'a' stands twice, in line 4 and in line 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8-sig", None),
        ("utf-16", "is no text in UTF-8: save it in UTF-8"),
        ("utf-32", "is no text in UTF-8: save it in UTF-8"),
        ("utf-16-le", "is not valid YAML"),
        ("latin-1", "is no text in UTF-8: save it in UTF-8"),
    ],
)
def test_encodings(encoding: str, said: str | None, refused: Refused) -> None:
    text = config({"ä": "x.safetensors", "b": "y.safetensors"} if encoding == "latin-1" else {"a": "x.safetensors"})
    Path("c.yaml").write_bytes(text.encode(encoding))
    if said is None:
        assert main(["merge", "--config", "c.yaml", "--output", "o.safetensors"]) == 0
        return
    line = refused("--config", "c.yaml")
    assert line.startswith("c.yaml ")
    assert said in line
    Path("plain.yaml").write_text(PLAIN)
    Path("m.yaml").write_bytes("class_path: CART # ä\n".encode(encoding))
    if encoding != "utf-16-le":
        assert refused("--config", "plain.yaml", "--model.method", "m.yaml") == (
            "model.method: the file that it names is no text in UTF-8: save it in UTF-8"
        )


def test_names_of_tasks_and_of_files(here: Path) -> None:
    """Every name that YAML would make something else of; through interpolation too."""
    method = "{class_path: CART, init_args: {matrices: all, rank_ratio: 0.5}}"
    for name in NAMES:
        Path(name).mkdir()
        save_file(load_file("x.safetensors"), Path(name) / "e.safetensors")
    for interpolated in (False, True):
        own = {f"'{name}'" if name[0] == "[" else name: f"{'xyz'[i % 3]}.safetensors" for i, name in enumerate(NAMES)}
        text = config(own, method)
        if interpolated:
            text = text.replace(": x.safetensors", ": ${model.experts.1}").replace(
                "1: ${model.experts.1}", "1: y.safetensors"
            )
        Path("c.yaml").write_text(text)
        with pytest.warns(UserWarning, match="are identical"):
            assert main(["export", "--config", "c.yaml", "--output", f"bank{interpolated}"]) == 0
        bank = TaskBank.load(f"bank{interpolated}")
        assert list(bank.tasks) == NAMES
        assert bank.method["init_args"] == {"rank_ratio": 0.5, "scaling": 2.0, "matrices": "all"}
    for name in ("1", "no", "0x10", "2024-01-01"):
        Path("c.yaml").write_text(
            f"model:\n  experts: {name}\n  method: WeightAveraging\noutput: 1_000/{name}\noverwrite: no\n"
        )
        assert main(["merge", "--config", "c.yaml"]) == 0
        assert (Path("1_000") / name).is_dir()


def test_numbers_are_what_they_were(here: Path) -> None:
    """Whatever way a number is written in, where one is wanted."""
    for written, value in (("0x2", 2.0), ("1_0", 10.0), ("1e-1", 0.1), (".5", 0.5), ("2", 2.0), ("+1.5", 1.5)):
        method = f"{{class_path: TaskArithmetic, init_args: {{scaling: {written}}}}}"
        Path("c.yaml").write_text(config({"a": "x.safetensors"}, method) + "  base: y.safetensors\n")
        assert main(["export", "--config", "c.yaml", "--output", written]) == 0
        assert TaskBank.load(written).method["init_args"]["scaling"] == value  # type: ignore[index]
    assert main(["export", "--config", "c.yaml", "--output", "2"]) == 2
    for yes in ("yes", "on", "true"):
        Path("c.yaml").write_text(config({"a": "x.safetensors"}) + "overwrite: yes\n  # as a switch\n")
        assert main(["export", "--config", "c.yaml", "--output", "2"]) == 0, yes


def test_switches(refused: Refused) -> None:
    Path("c.yaml").write_text(PLAIN + "overwrite: maybe\n")
    assert "expected true or false, got maybe" in refused("--config", "c.yaml")


@pytest.mark.parametrize("number", [".nan", ".inf", "1e999"])
def test_numbers_that_are_not_finite(number: str, refused: Refused) -> None:
    Path("c.yaml").write_text(config({"a": "x.safetensors"}, f"{{class_path: CART, init_args: {{scaling: {number}}}}}"))
    assert refused("--config", "c.yaml").startswith("model.method.scaling=")
    Path("c.yaml").write_text(PLAIN)
    for name, value in (
        ("model.sharpness", number),
        ("model.bounds", f"[0, {number}]"),
        ("model.stages", f"[{{granularity: tied, steps: 1, lr: {number}}}]"),
        ("model.ranks", f"{{lr: {number}}}"),
        ("model.method", f"{{class_path: ConsensusTA, init_args: {{kappa: {{a: {number}}}}}}}"),
        ("model.transform", f"{{class_path: AWD, init_args: {{alpha: {number}}}}}"),
    ):
        line = refused("--config", "c.yaml", f"--{name}", value)
        assert line.startswith(name), line
        assert line.endswith(": expected a finite number")


def test_a_run_of_names_that_are_no_words(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = dict(zip(tiny.tasks, ("no", "[red]1", "$\\foo$"), strict=True))
    heads = {names[task]: rows for task, rows in load_file(tiny.heads).items()}
    save_file(heads, "heads.safetensors", {"logit_scale": "16.0"})
    network = {"config": tiny.network, "heads": "heads.safetensors"}
    Path("rest.yaml").write_text(
        json.dumps(
            {
                "model": {
                    "method": {"class_path": "CART", "init_args": {"rank_ratio": 0.5, "scaling": 1.0}},
                    "network": {"class_path": "OpenClipImageEncoder", "init_args": network},
                    "stages": [{"granularity": "tied", "steps": 1, "lr": 0.01}],
                },
                "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
            }
        )
    )
    written = dict(zip(tiny.tasks, ("no", "'[red]1'", "$\\foo$"), strict=True))

    def block(title: str, indent: int, files: dict[str, str]) -> str:
        return (
            " " * indent + title + ":\n" + "".join(f"{' ' * (indent + 2)}{written[t]}: {f}\n" for t, f in files.items())
        )

    data = block("adapt", 4, tiny.adapt_folders) + block("test", 4, tiny.test_folders)
    Path("c.yaml").write_text(
        "model:\n"
        + block("experts", 2, tiny.experts)
        + "data:\n  class_path: ImageFolders\n  init_args:\n    image_size: 16\n    batch_size: 4\n"
        + data
    )
    assert main(["fit", "--config", "rest.yaml", "--config", "c.yaml", "--run", "run"]) == 0
    expected = list(names.values())
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert list(metrics["tasks"]) == list(TaskBank.load("run/bank").tasks) == expected
    rows = csv.DictReader(Path("run/coefficients.csv").read_text().splitlines())
    assert list(dict.fromkeys(row["task"] for row in rows)) == expected
    table = Path("run/table.txt").read_text()
    assert all(f" {name} " in table for name in expected)
    # What the run has written down is the same configuration.
    assert main(["test", "--config", "run/config.yaml", "--output", "tested.json"]) == 0
    assert list(json.loads(Path("tested.json").read_text())["tasks"]) == expected


def test_a_disk_that_fails_while_the_parser_looks_into_a_file() -> None:
    with pytest.raises(MergeError, match="cannot be read: Input/output error"), building():
        raise TypeError("model.network") from OSError(5, "Input/output error")
    with pytest.raises(TypeError, match="a bug"), building():
        raise TypeError("a bug")
