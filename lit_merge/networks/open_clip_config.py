"""Configurations of open_clip models, by name or from files."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from open_clip import get_model_config, list_models

from lit_merge.errors import MergeError
from lit_merge.locations import resolve
from lit_merge.networks.hugging_face_config import (
    is_hugging_face,
    open_clip_options,
    read_json,
    read_preprocessing,
)


def read_config(config: str) -> dict[str, Any]:
    """An open_clip configuration by file or by name; by file, Hugging Face's of a CLIP too, or a folder with one."""
    path = resolve(config)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.exists():
        return _read_json(path)
    found = get_model_config(config)
    if found is None:
        near = get_close_matches(config, list_models(), n=1, cutoff=0)
        raise MergeError(f"no open_clip model {config!r}; the nearest is {near[0]}; or give the path of a .json file")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if is_hugging_face(found):
        return open_clip_options(found, read_preprocessing(path), str(path))
    # open_clip's hub files nest the model's part.
    return found.get("model_cfg", found) | {k: v for k, v in found.items() if k == "preprocess_cfg"}
