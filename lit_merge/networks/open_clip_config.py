"""Configurations of open_clip models, by name or from files."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from open_clip import get_model_config, list_models

from lit_merge.errors import MergeError
from lit_merge.locations import resolve


def read_config(config: str) -> dict[str, Any]:
    """An open_clip configuration by file or by name."""
    path = resolve(config)
    if path.suffix == ".json" or path.exists():
        return _read_json(path)
    found = get_model_config(config)
    if found is None:
        near = get_close_matches(config, list_models(), n=1, cutoff=0)
        raise MergeError(f"no open_clip model {config!r}; the nearest is {near[0]}; or give the path of a .json file")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MergeError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise MergeError(f"{path} is no JSON file: {error}") from error
    if not isinstance(found, dict):
        raise MergeError(f"{path} is no open_clip configuration: expected embed_dim and vision_cfg")
    # open_clip's hub files nest the model's part.
    return found.get("model_cfg", found) | {k: v for k, v in found.items() if k == "preprocess_cfg"}
