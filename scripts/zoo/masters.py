"""The masters of every script and of the real digits, with the split of every font; made once for all seeds."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.alphabets import ALPHABETS, rows
from zoo.digits import SIZES, digit_masters, digit_split
from zoo.fonts import FontFile, find_fonts
from zoo.glyphs import render_alphabet
from zoo.problem import Problem
from zoo.splits import DROPPED, SPLITS, alike, fonts_per_split, missing, split_fonts
from zoo.tasks import TASKS

_MOST_CANDIDATES = 400
_MOST_FONTS = 80
_SEED = 0


@dataclass(frozen=True)
class UsedFont:
    """A font that some script uses: where it comes from, its split, and its row in the masters of each script."""

    path: str
    package: str
    family: str
    split: str
    scripts: dict[str, int] = field(default_factory=dict)


class Masters:
    """Reads the masters that `build_masters` wrote."""

    def __init__(self, folder: Path) -> None:
        self._tensors = load_file(folder / "masters.safetensors")
        self.fonts = [UsedFont(**entry) for entry in json.loads((folder / "fonts.json").read_text("utf-8"))]
        self._rows: dict[tuple[str, str], list[int]] = defaultdict(list)
        for font in self.fonts:
            for script, row in font.scripts.items():
                self._rows[script, font.split].append(row)

    def glyphs(self, script: str, split: str) -> tuple[Tensor, Tensor]:
        """Masters uint8 (fonts * classes, 48, 48) of a script's fonts in a split, and labels within the script."""
        masters = self._tensors[script][sorted(self._rows[script, split])]
        fonts, classes = masters.shape[:2]
        return masters.flatten(0, 1), torch.arange(classes).repeat(fonts)

    def digits(self, name: str, split: str) -> tuple[Tensor, Tensor]:
        """Masters uint8 (N, 48, 48) and labels (N,) of real digits."""
        return digit_split(self._tensors[name], self._tensors[f"{name}.labels"], name, split)

    def everything(self, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Glyphs of all scripts (N, 48, 48), rows of the class table (N,), and weights (N,) that make classes even."""
        parts = []
        for script in ALPHABETS:
            masters, labels = self.glyphs(script, split)
            weight = len(ALPHABETS[script]) / max(len(masters), 1)
            parts.append((masters, labels + rows(script).start, torch.full((len(masters),), weight)))
        masters, labels, weights = (torch.cat(column) for column in zip(*parts, strict=True))
        return masters, labels, weights


def build_masters(unpacked: Path, folder: Path) -> None:
    """Renders, splits and writes `masters.safetensors` and `fonts.json`."""
    fonts, dropped = find_fonts(unpacked)
    print(f"masters: {len(fonts)} font files; left out for want of a clear licence: {', '.join(dropped) or 'none'}")
    members, drawn = _render(fonts, unpacked)
    split = _split(fonts, members, drawn)
    tensors, used = {}, {}
    for script, numbers in members.items():
        kept = _choose(split[numbers])
        tensors[script] = torch.tensor(drawn[script][kept])
        for row, place in enumerate(kept):
            font = fonts[numbers[place]]
            start = UsedFont(font.path, font.package, font.family, SPLITS[split[numbers[place]]])
            used.setdefault(font.path, start).scripts[script] = row
    for name in SIZES:
        tensors[name], tensors[f"{name}.labels"] = digit_masters(name)
    _show(list(used.values()))
    (folder / "fonts.json").write_text(json.dumps([asdict(used[path]) for path in sorted(used)], indent=1), "utf-8")
    save_file(tensors, folder / ".masters.part")
    (folder / ".masters.part").replace(folder / "masters.safetensors")


def _render(fonts: list[FontFile], unpacked: Path) -> tuple[dict[str, list[int]], dict[str, NDArray[np.uint8]]]:
    """For every script the numbers of the fonts that draw it well, and their masters (F, C, 48, 48)."""
    random = np.random.default_rng(_SEED)
    number = {font.path: i for i, font in enumerate(fonts)}
    members, drawn = {}, {}
    for script, alphabet in ALPHABETS.items():
        wanted = set(map(ord, alphabet))
        able = [font for font in fonts if wanted <= font.characters]
        candidates = [able[i] for i in random.permutation(len(able))[:_MOST_CANDIDATES]]
        kept, drawn[script] = render_alphabet(candidates, unpacked, alphabet)
        members[script] = [number[font.path] for font in kept]
        print(f"masters: {script:11s} {len(able):4d} fonts have it, {len(kept):3d} draw it well", flush=True)
    return members, drawn


def _split(
    fonts: list[FontFile], members: dict[str, list[int]], drawn: dict[str, NDArray[np.uint8]]
) -> NDArray[np.int64]:
    """The split (F,) of every font file; -1 for those that no split can take."""
    used = sorted({i for numbers in members.values() for i in numbers})
    families = np.array([font.family for font in fonts])
    related = families[:, None] == families[None]
    scripts = np.zeros((len(fonts), len(members)), bool)
    for column, (script, numbers) in enumerate(members.items()):
        related[np.ix_(numbers, numbers)] |= alike(drawn[script])
        scripts[numbers, column] = True
    split = np.full(len(fonts), DROPPED)
    split[used] = split_fonts(related[np.ix_(used, used)], scripts[used], _SEED)
    needed = {task.script for task in TASKS.values()}
    if lacking := missing(fonts_per_split(scripts, split), list(members), needed):
        raise Problem("; ".join(lacking) + ": more fonts are needed (zoo/packages.py)")
    return split


def _choose(split: NDArray[np.int64]) -> list[int]:
    """At most 80 of a script's fonts, given their splits (F,): each split keeps its share of them."""
    kept = []
    total = int((split != DROPPED).sum())
    for part in range(len(SPLITS)):
        members = np.flatnonzero(split == part)
        kept += members[: round(len(members) * min(1, _MOST_FONTS / total))].tolist()
    return kept


def _show(fonts: list[UsedFont]) -> None:
    """Prints how many fonts every script has in every split."""
    print(f"\n{'fonts':11s} " + " ".join(f"{name:>10s}" for name in SPLITS))
    for script in ALPHABETS:
        counts = [sum(script in font.scripts and font.split == name for font in fonts) for name in SPLITS]
        print(f"{script:11s} " + " ".join(f"{count:10d}" for count in counts), flush=True)
