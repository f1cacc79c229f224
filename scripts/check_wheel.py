"""Builds the wheel, looks at what is in it, and runs `lit-merge fit --config quickstart` in an environment of its own.

    python scripts/check_wheel.py

The environment has this wheel, and sees the other packages of the environment that runs the script: nothing is
downloaded but what builds the wheel. A short fit is run in an empty folder; it takes half a minute on two cores.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Two of the eight tasks.
TASKS = ["mnist", "signs"]
SHORT = ["--model.experts", json.dumps({task: f"zoo:8/experts/{task}.safetensors" for task in TASKS})]
SHORT += ["--data.tasks", json.dumps(TASKS), "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]


def build(folder: Path) -> Path:
    """The wheel, built by pip as an installation would."""
    command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--quiet", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_content(wheel: Path) -> None:
    """Raises SystemExit where a file is missing, or one is there that is none of the package's."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    if missing := sorted(expected() - names):
        raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}")
    if strangers := sorted(name for name in names - expected() if ".dist-info/" not in name):
        raise SystemExit(f"{wheel.name} holds {', '.join(strangers)}")


def expected() -> set[str]:
    """What the wheel holds: the files of the package and its configurations, as git has them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "lit_merge", "configs"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name if name.startswith("lit_merge/") else f"lit_merge/{name}" for name in listed if (ROOT / name).exists()}


def install(wheel: Path, folder: Path) -> Path:
    """An environment with the wheel, and what this one has; answers its folder of commands."""
    venv.create(folder, with_pip=False)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    (python,) = (path for path in commands.iterdir() if path.stem == "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", wheel], check=True)
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    # A folder that is named here is looked at last, and its own .pth files, as of an editable lit_merge, are not.
    Path(place.stdout.strip(), "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return commands


def run(commands: Path, folder: Path) -> None:
    """The command in an empty folder. Raises SystemExit where another lit_merge than the wheel's ran."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(
        [commands / "lit-merge", "fit", "--config", "quickstart", *SHORT], cwd=folder, env=environment, check=True
    )
    report = json.loads((folder / "runs" / "quickstart" / "metrics.json").read_text())
    if list(report["tasks"]) != TASKS:
        raise SystemExit(f"the fit reports {list(report['tasks'])}, expected {TASKS}")
    where = [commands / "python", "-c", "import lit_merge; print(lit_merge.__file__)"]
    found = subprocess.run(
        where, cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(found).is_relative_to(commands.parent):
        raise SystemExit(f"lit_merge was imported from {found}, not from the wheel")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        made = build(Path(name))
        check_content(made)
        empty = Path(name, "empty")
        empty.mkdir()
        run(install(made, Path(name, "environment")), empty)
        print(f"{made.name}: {made.stat().st_size / 1e6:.1f} MB, {sys.version.split()[0]}: installs and runs")
