"""The font files of the unpacked packages: their package, family and the characters they have."""

from dataclasses import dataclass
from pathlib import Path

from fontTools.ttLib import TTCollection, TTFont

from zoo.licences import licences

# Slanted and symbol cuts: near-copies of their upright sisters, or no letters at all.
_UNWANTED = ("oblique", "italic", "mathit", "symbol")


@dataclass(frozen=True)
class FontFile:
    """One font file; `path` is below the folder of unpacked packages."""

    path: str
    package: str
    family: str
    characters: frozenset[int]


def find_fonts(unpacked: Path) -> tuple[list[FontFile], list[str]]:
    """All usable font files, one a file name, and the packages left out because their licence is not known."""
    fonts: list[FontFile] = []
    dropped: list[str] = []
    stems: set[str] = set()
    for folder in sorted(path for path in unpacked.iterdir() if not path.name.startswith(".")):
        if not licences(copyright_file(unpacked, folder.name)):
            dropped.append(folder.name)
            continue
        for file in sorted(path for path in folder.rglob("*") if path.suffix in (".ttf", ".otf", ".ttc")):
            stem = file.stem.lower()
            if stem in stems or file.is_symlink() or any(word in stem for word in _UNWANTED):
                continue
            if font := _read(file, unpacked, folder.name):
                stems.add(stem)
                fonts.append(font)
    return fonts, dropped


def copyright_file(unpacked: Path, package: str) -> Path:
    """Where Debian puts a package's copyright file."""
    return unpacked / package / "usr/share/doc" / package / "copyright"


def _read(file: Path, unpacked: Path, package: str) -> FontFile | None:
    """The font, or nothing where fontTools cannot read it: a broken file is no reason to stop."""
    try:
        font = TTCollection(file, lazy=True).fonts[0] if file.suffix == ".ttc" else TTFont(file, lazy=True)
        names = font["name"]
        family = names.getDebugName(16) or names.getDebugName(1) or file.stem
        characters = frozenset(font.getBestCmap() or ())
    except Exception:  # fontTools raises whatever the damage leads to
        return None
    return FontFile(file.relative_to(unpacked).as_posix(), package, family.strip(), characters)
