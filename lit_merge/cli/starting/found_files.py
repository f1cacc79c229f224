"""What lies next to a folder of experts and belongs to them: the base, the network, heads, images, tables of texts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_merge.checkpoints.folders import SUFFIXES, holds_model
from lit_merge.checkpoints.json_text import entries_of
from lit_merge.checkpoints.locations import resolve
from lit_merge.experts.files import BASES, HEADS, models_in

INPUTS = ("images", "texts", "unlabelled", "adapt", "train")
LABELLED = ("labelled", "labeled", "test", "val")
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
CONFIGURATIONS = ("network.json", "open_clip_config.json", "config.json")


@dataclass(frozen=True)
class FoundFiles:
    """Files by what they are for; None for what was not found.

    Attributes:
        experts: task → file or folder.
        base: the pretrained model.
        places: folders that were looked in, the experts' own first.
    """

    experts: dict[str, str]
    base: str | None
    places: tuple[Path, ...]

    @property
    def heads(self) -> str | None:
        """A file of heads, or a folder of the heads of a release."""
        names = ("heads.safetensors", "heads.pt", "heads")
        released = (place for place in self.places if any(place.glob(f"{HEADS}*.pt")))
        return _first(place / name for place in self.places for name in names) or _first(released)

    @property
    def classes(self) -> dict[str, str] | None:
        """Task → text file with the names of its classes, where every task has one."""
        return self._of_all("classes", lambda path: path.is_file(), (".txt",))

    def inputs(self, labelled: bool = False) -> dict[str, str] | None:
        """Task → folder of images or table of texts, where every task has one."""
        for name in LABELLED if labelled else INPUTS:
            if found := self._of_all(name, lambda path: path.exists(), ("", *TABLES)):
                return found
        return None

    def configurations(self) -> list[Path]:
        """Files that may be the configuration of the network, the nearest first."""
        own = [Path(path) for path in (*self.experts.values(), *([self.base] if self.base else []))]
        places = [*(path for path in own if path.is_dir()), *self.places]
        return [place / name for place in places for name in CONFIGURATIONS if (place / name).is_file()]

    def folder_with(self, *names: str) -> str | None:
        """The base's folder, or an expert's, that holds a file of one of these names."""
        own = [*([self.base] if self.base else []), *self.experts.values()]
        return next((path for path in own if any((Path(path) / name).is_file() for name in names)), None)

    def _of_all(self, folder: str, fits: Callable[[Path], bool], suffixes: Sequence[str]) -> dict[str, str] | None:
        for place in self.places:
            found = {}
            for task in self.experts:
                paths = (place / folder / f"{task}{suffix}" for suffix in suffixes)
                found[task] = next((str(path) for path in paths if fits(path)), "")
            if all(found.values()):
                return found
        return None


def find_files(folder: str, base: str | None = None) -> FoundFiles:
    """The experts in a folder, or in its folder `experts`, and what lies next to them.

    Args:
        folder: where the experts are.
        base: the pretrained model, where it is somewhere else.

    Raises:
        MergeError: no such folder, or one without experts.
    """
    inner = Path(folder, "experts")
    within = resolve(str(inner)).is_dir()
    experts, bases = models_in(str(inner) if within else folder)
    own = base or next(iter(bases.values()), None)
    places = (resolve(folder), *(() if within else (resolve(folder).parent,)))
    places = tuple(_shown(place) for place in places)
    own = own or _base_beside(places) or _base_of_adapters(experts) or _base_of_a_release(experts)
    return FoundFiles(experts, own, places)


def _base_beside(places: Iterable[Path]) -> str | None:
    names = [f"{name}{suffix}" for name in BASES for suffix in ("", *SUFFIXES)]
    paths = (place / name for place in places for name in names)
    return next((str(path) for path in paths if path.is_file() or (path.is_dir() and holds_model(path))), None)


def _base_of_adapters(experts: dict[str, str]) -> str | None:
    """The folder that LoRA adapters name as their base, where it is on this machine."""
    named = (entries_of(Path(path) / "adapter_config.json").get("base_model_name_or_path") for path in experts.values())
    return next((str(one) for one in named if isinstance(one, str) and one and Path(one).is_dir()), None)


def _base_of_a_release(experts: dict[str, str]) -> str | None:
    """The pretrained model, which some releases put next to every expert."""
    return _first(Path(path, name) for path in experts.values() for name in ("zeroshot.pt", "nonlinear_zeroshot.pt"))


def _first(paths: Iterable[Path]) -> str | None:
    return next((str(path) for path in paths if path.exists()), None)


def _shown(path: Path) -> Path:
    """A path as short as it is from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
