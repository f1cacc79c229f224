"""Columns of data sets of Hugging Face's `datasets`: saved on disk, as a folder of files, or from its hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_merge.errors import MergeError
from lit_merge.locations import cache_folder, resolve

HUB = "hf://"
# What `save_to_disk` writes: of one split, and of several.
SAVED = ("state.json", "dataset_dict.json")


def is_hub(location: str) -> bool:
    """Whether a location names a data set of the hub."""
    return location.startswith(HUB)


def read_dataset(location: str, columns: Sequence[str]) -> tuple[dict[str, list[Any]], dict[str, list[str]]]:
    """Some columns of a split, and the names of classes where a column is of classes.

    Raises:
        MergeError: `datasets` is missing or cannot read it; no such split or none named of several; no such column.
    """
    place, _, split = location.partition("#")
    data = _split(location, _open(place), split)
    for name in columns:
        if name not in data.column_names:
            raise MergeError(f"{location} has no column {name!r}; it has {', '.join(data.column_names)}")
    features = {name: data.features[name] for name in columns}
    names = {name: list(one.names) for name, one in features.items() if getattr(one, "names", None)}
    chosen = data.select_columns(list(columns))
    return {name: list(chosen[name]) for name in columns}, names


def files_of(folder: Path) -> list[Path]:
    """The files of a data set on disk, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _open(place: str) -> Any:
    datasets = _import()
    try:
        if is_hub(place):
            organisation, name, *rest = [*place.removeprefix(HUB).split("/"), ""][:3]
            # Failing at once where there is no network, rather than trying for minutes.
            once = datasets.DownloadConfig(max_retries=0)
            repository = f"{organisation}/{name}" if name else organisation
            return datasets.load_dataset(repository, "".join(rest) or None, download_config=once)
        folder = resolve(place)
        if any((folder / name).is_file() for name in SAVED):
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder), cache_dir=str(cache_folder() / "datasets"))
    except Exception as error:  # datasets fails in as many ways as data sets are broken
        told = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise MergeError(f"{place} cannot be read by datasets: {told}") from error


def _split(location: str, data: Any, split: str) -> Any:
    if not isinstance(data, dict):
        if split:
            raise MergeError(f"{location}: this data set is one split already: leave out #{split}")
        return data
    if not split and len(data) == 1:
        return next(iter(data.values()))
    if split not in data:
        wrong = f"no split {split!r}" if split else "several splits"
        place = location.partition("#")[0]
        raise MergeError(f"{place} has {wrong}, it has {', '.join(data)}: write {place}#{next(iter(data))}")
    return data[split]


def _import() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MergeError("data sets of Hugging Face need datasets: pip install 'lit_merge[hf]'") from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets
