"""What the README and docs show runs: every command, every configuration, every example."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lit_merge.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^lit-merge .*$", README + COMMANDS_PAGE, re.MULTILINE)
# What cuts a command to a few seconds: it goes over the configuration as any option does.
SHORT = {
    "fit": ["--trainer.max_steps", "2", "--trainer.limit_test_batches", "2"],
    "test": ["--trainer.limit_test_batches", "2"],
    "predict": ["--trainer.limit_predict_batches", "2"],
    "sweep": ["--rank_ratios", "[0.16]", "--scalings", "[6.0]", "--images", "2"],
    "analyze": ["--matrices", '["*.c_fc.weight"]'],
}
# A configuration of each kind of fit: bounds, a coefficient a task, learnt ranks, a transform, a rule for the scale,
# one delta for all tasks, second moments. To a fit, banks of the other methods are like one of these.
FITTED = {
    "adamerging",
    "adamerging_task",
    "adarank_cart",
    "awd_ties",
    "cart_entropy",
    "iso_c",
    "esm",
    "quickstart",
    "cart_teachers",
}
QUIET = ["--trainer.enable_progress_bar", "false"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_readme_is_short_and_names_what_there_is() -> None:
    assert len(README.splitlines()) <= 110
    for name in re.findall(r"\]\(([^):]+)\)", README):
        assert (ROOT / name).exists(), name
    assert not [verb for verb in VERBS if f"| `{verb}`" not in README and f", `{verb}`" not in README]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
def test_commands_of_the_readme_and_the_page_of_commands(workplace: Path, on_tiny: list[str]) -> None:
    """On the tiny zoo: the quickstart's own script runs on the built-in suite."""
    ours = [shlex.split(line)[1:] for line in COMMANDS]
    assert {"fit", "test", "predict", "merge", "export", "sweep", "analyze", "zoo", "inspect"} == {
        arguments[0] for arguments in ours
    }
    for arguments in ours:
        extra = SHORT.get(arguments[0], [])
        if arguments[0] == "analyze":
            extra = [*on_tiny[:4], *extra]
        elif arguments[0] not in ("zoo", "inspect"):
            extra = [*on_tiny, "--data.batch_size", "4", *extra, *QUIET]
        arguments = [{"thai": "beta"}.get(one, one) for one in arguments]
        assert main([*arguments, *extra]) == 0, arguments
    assert (workplace / "runs" / "quickstart" / "accuracy.png").is_file()


@pytest.fixture
def on_tiny(tiny: Any) -> list[str]:
    """Options that put the tiny zoo in the place of the built-in suite."""
    network = ["--model.network.config", tiny.network, "--model.network.heads", tiny.heads]
    return ["--model.experts", f"{tiny.root}/experts", "--model.base", tiny.base, *network, "--data.path", tiny.suite]


@pytest.mark.filterwarnings("ignore::lit_merge.MergeWarning")
# Those in folders, of the vision tasks: test_vision_configs.py.
@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_runs(path: Path, workplace: Path, on_tiny: list[str]) -> None:
    start = ["--config", str(path), *on_tiny]
    merged = ["--output", "merged.safetensors"]
    if path.stem in (
        "esm",
        "regmean",
        "awd_esm",
        "esm_official",
        "esm_teachers",
    ):  # fewer images than those configurations look at
        start += ["--model.method.samples", "8"]
    if path.stem.endswith("_teachers"):  # and matrices are smaller
        start += ["--model.correction.rank", "2"]
    assert main(["merge", *start, *merged]) == 0
    if path.stem == "weight_averaging":
        assert main(["test", *start, *QUIET]) == 0
    elif path.stem in FITTED:
        plain = ["--trainer.callbacks+=CoefficientLog", "--trainer.callbacks.figures=false"]
        assert main(["fit", *start, "--data.batch_size", "4", *SHORT["fit"], *QUIET, *plain]) == 0
        assert (workplace / "runs" / path.stem / "bank").is_dir()


@pytest.mark.filterwarnings("ignore")
def test_python_example(workplace: Path) -> None:
    (example,) = blocks(README, "python")
    assert len(example.strip().splitlines()) <= 12
    assert example.count("steps=20") == 2
    scope: dict[str, object] = {}
    exec(compile(example.replace("steps=20", "steps=2"), "README.md", "exec"), scope)
    assert scope["weights"]


def test_a_method_of_your_own(tmp_path: Path, tiny: Any, forks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, test = blocks((ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8"), "python")
    assert len(source.strip().splitlines()) <= 30
    (tmp_path / "my_module.py").write_text(source)
    (tmp_path / "test_my_module.py").write_text(test)
    said = forks.tests(tmp_path)
    assert "1 passed" in said, said
    monkeypatch.syspath_prepend(tmp_path)
    experts = [f"--model.experts.{task}={path}" for task, path in tiny.experts.items()]
    network = ["--model.network", "OpenClipImageEncoder", "--model.network.config", tiny.network]
    network += ["--model.network.heads", tiny.heads, "--model.method", "my_module.MedianLowRank"]
    assert main(["merge", *experts, *network, "--output", str(tmp_path / "merged.safetensors")]) == 0


def test_adaptation_examples(workplace: Path, on_tiny: list[str]) -> None:
    text = (ROOT / "docs" / "adaptation.md").read_text(encoding="utf-8")
    found = blocks(text, "yaml")
    assert len(found) == 5
    start = ["--config", "configs/cart.yaml"]
    plain = ["--trainer.callbacks+=CoefficientLog", "--trainer.callbacks.figures=false"]
    for i, block in enumerate(found):
        # A compiler takes minutes (test_compiling.py), and there need not be a GPU.
        block = block.replace("compile: true", "compile: false").replace("accelerator: gpu", "accelerator: cpu")
        block = block.replace("rank: 64", "rank: 2")
        Path(f"block{i}.yaml").write_text(block)
        options = [*start, "--config", f"block{i}.yaml", *on_tiny, "--data.batch_size", "4", "--run", f"run{i}"]
        assert main(["fit", *options, *SHORT["fit"], *QUIET, *plain]) == 0


def test_callbacks_examples(workplace: Path, on_tiny: list[str]) -> None:
    text = (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8")
    callbacks, logs = blocks(text, "yaml")
    if find_spec("tensorboard") is None:
        logs = logs.replace("TensorBoardLogger", "CSVLogger")
    for name, example in (("callbacks", callbacks), ("logs", logs)):
        # The fits of this test are short, and a schedule may not go on after their end.
        (workplace / f"{name}.yaml").write_text(example.replace("100: 0.16", "2: 0.16"))
        config = ["--config", "configs/cart.yaml", "--config", f"{name}.yaml", *on_tiny, "--data.batch_size", "4"]
        assert main(["fit", *config, "--run", "runs/cart", "--overwrite", *SHORT["fit"], *QUIET]) == 0
    assert (workplace / "runs" / "small-bank" / "bank.json").is_file()
    assert (workplace / "runs" / "cart" / "lightning_logs").is_dir()
    for example in blocks(text, "python"):
        exec(example, {})
    assert (workplace / "coefficients.svg").is_file()
    (export,) = blocks(text, "bash")
    assert main([*shlex.split(export)[1:], *on_tiny, *QUIET]) == 0
    assert (workplace / "small" / "bank.json").is_file()


@pytest.fixture
def shim(tmp_path: Path) -> dict[str, str]:
    """An environment whose python is this one, but which only notes the modules that it is asked to run."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then shift; echo "$HF_HUB_OFFLINE" "$@" >> {tmp_path}/asked; exit 0; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return kept | {"VIRTUAL_ENV": str(tmp_path / "environment"), "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(sys.platform == "win32", reason="bash scripts")
def test_the_two_scripts_install_once_and_run(shim: dict[str, str], tmp_path: Path) -> None:
    """Their fit is one of those in test_commands_of_the_readme_and_the_page_of_commands."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {"scripts/quickstart", "scripts/test"} <= set(re.findall(r"^scripts/\w+$", contributing, re.MULTILINE))
    for command in (
        ["scripts/quickstart"],
        ["scripts/quickstart", "--run", "a run"],
        ["scripts/test"],
        ["scripts/test", "tests/methods", "-x"],
    ):
        subprocess.run(command, cwd=ROOT, env=shim, check=True, capture_output=True, text=True)
    pip, fit = " pip install --disable-pip-version-check --quiet -e", " lit_merge fit --config configs/quickstart.yaml"
    tests = "1 pytest --numprocesses auto --dist worksteal"
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"{pip} .", f"{fit} --overwrite", f"{fit} --run a run",
        f"{pip} .[test]", tests, f"{tests} tests/methods -x",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="bash scripts")
@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ('case "$1$2" in -cimport\\ sys*) exit 1;; --version) echo Python 3.8.1;; esac', "Python 3.8.1 is too old"),
        ('case "$2" in "import venv"*) exit 1;; esac', "no venv module"),
    ],
)
def test_scripts_say_what_is_missing(behaviour: str, said: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/bash\n{behaviour}\n")
    python.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "CONDA_PREFIX"}
    environment |= {"PYTHON": str(python), "VIRTUAL_ENV": str(tmp_path / "none")}
    done = subprocess.run([ROOT / "scripts/quickstart"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
