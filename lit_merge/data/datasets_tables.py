"""Data sets of Hugging Face's `datasets`: saved on disk, as a folder of files, or from its hub."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_merge.checkpoints.locations import cache_folder, resolve
from lit_merge.errors import MergeError, first_line

HUB = "hf://"
# The way out where a column is not there.
NAME_ONE = "name another with --data.text or --data.label"
# Seconds to wait for the Hub's first answer.
PATIENCE = 5.0
# Status of answers that are the server's fault, from here on.
SERVER_ERROR = 500


def is_hub(location: str) -> bool:
    """Whether a location names a data set of the hub."""
    return location.startswith(HUB)


def files_of(folder: Path) -> list[Path]:
    """The files of a data set on disk, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def place_and_split(location: str) -> tuple[str, str]:
    """What stands before and behind the `#` that names a split; a file or folder may have one in its own name."""
    place, mark, split = location.rpartition("#")
    if not mark or (not is_hub(location) and resolve(location).exists()):
        return location, ""
    return place, split


def read_dataset(location: str, columns: Sequence[str]) -> tuple[dict[str, list[Any]], dict[str, list[str]]]:
    """Some columns of a split, and the names of classes where a column is of classes.

    Args:
        location: what `open_tables` takes, and behind a `#` which split where there are several.
        columns: which.

    Raises:
        MergeError: as `open_tables`; no such split or none named of several; no such column.
    """
    place, split = place_and_split(location)
    data = _split(location, open_tables(place, any_files=True), split)
    for name in columns:
        if name not in data.column_names:
            raise MergeError(f"{location} has no column {name!r}; it has {', '.join(data.column_names)}: {NAME_ONE}")
    features = {name: data.features[name] for name in columns}
    names = {name: list(one.names) for name, one in features.items() if getattr(one, "names", None)}
    chosen = data.select_columns(list(columns))
    return {name: list(chosen[name]) for name in columns}, names


def _split(location: str, tables: Mapping[str, Any], split: str) -> Any:
    if not split and len(tables) == 1:
        return next(iter(tables.values()))
    if split not in tables:
        wrong = f"no split {split!r}" if split else "several splits"
        place, _ = place_and_split(location)
        raise MergeError(f"{place} has {wrong}, it has {', '.join(tables)}: write {place}#{next(iter(tables))}")
    return tables[split]


def is_table_folder(folder: Path) -> bool:
    """Whether `open_tables` reads this folder."""
    if not folder.is_dir():
        return False
    saved = ("dataset_dict.json", "state.json", "*/state.json", "*.parquet", "*/*.parquet", "*.arrow", "*/*.arrow")
    return any(next(folder.glob(pattern), None) is not None for pattern in saved)


def open_tables(location: str, any_files: bool = False) -> Mapping[str, Any]:
    """Split → `datasets.Dataset`, of a folder or of a data set of the Hub.

    Args:
        location: a folder, or `hf://org/name` with `/configuration` behind it where there are several.
        any_files: read folders of whatever files `datasets` knows, not only what it saves itself.

    Raises:
        MergeError: a folder that is missing or holds no data set; a name that is not found, or cannot be reached.
    """
    try:
        import datasets
    except ImportError as error:
        raise MergeError(f"{location}: data sets need the package datasets: pip install 'lit_merge[hf]'") from error
    if is_hub(location):
        return _from_hub(location, *location.removeprefix(HUB).split("/"))
    folder = resolve(location)
    if not folder.is_dir():
        raise MergeError(f"{folder}: no such folder; a data set of the Hub is named {HUB}org/name")
    if not any_files and not is_table_folder(folder):
        raise MergeError(
            f"{folder} holds no data set: expected what datasets' save_to_disk writes, or Parquet or Arrow files"
        )
    with _quiet():
        try:
            if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
                loaded = datasets.load_from_disk(str(folder))
            elif parts := sorted(path.parent for path in folder.glob("*/state.json")):
                return {part.name: datasets.load_from_disk(str(part)) for part in parts}
            else:
                loaded = datasets.load_dataset(str(folder), cache_dir=str(cache_folder() / "datasets"))
        except Exception as error:  # datasets fails in as many ways as folders are broken
            raise MergeError(f"{folder} cannot be read as a data set: {first_line(error)}") from error
    return loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}


def _from_hub(location: str, *parts: str) -> Mapping[str, Any]:
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if len(parts) not in (2, 3) or not all(parts):
        raise MergeError(f"{location}: expected {HUB}org/name or {HUB}org/name/configuration")
    try:
        # Asked once before datasets does, which tries for half a minute.
        HfApi().dataset_info("/".join(parts[:2]), timeout=PATIENCE)
    except OfflineModeIsEnabled:
        pass  # datasets has it in its cache, or fails at once
    except Exception as error:
        # Of a name that the Hub answers for, datasets says what is wrong at once; a proxy answers for no name.
        if not isinstance(error, HfHubHTTPError) or error.response.status_code >= SERVER_ERROR:
            raise MergeError(
                f"{location}: the Hub cannot be reached ({first_line(error)}): name a folder, or set HF_HUB_OFFLINE=1 "
                "to use what was downloaded before"
            ) from error
    with _quiet():
        try:
            return datasets.load_dataset("/".join(parts[:2]), *parts[2:])
        except Exception as error:
            raise MergeError(f"{location} cannot be loaded: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without bars and notes of datasets."""
    import datasets

    logger = logging.getLogger("datasets")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
