"""Whether weights and the config.json next to them fit together: entries that are not true are mended."""

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from lit_merge.checkpoints.companions.cropping import is_vocabulary, rows_of
from lit_merge.checkpoints.companions.judging import Files, Loaded, load, related
from lit_merge.checkpoints.companions.trimming import without_numbers
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.console import say
from lit_merge.errors import MergeError

CONFIG = "config.json"
# Entries that are written only where they stand already.
OPTIONAL = ("dtype", "torch_dtype")
# Entries whose changes are reported to the user.
REPORTED = ("architectures", "tie_word_embeddings", "vocab_size", "id2label")
_FLOATS = ("float64", "float32", "bfloat16", "float16")


def changed(about: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with entries that are true. Language models with several towers keep those of each in a part of
    its own; what stands nowhere comes to the top, but for what is `OPTIONAL`."""
    found = copy.deepcopy(dict(about))
    places = [found, *(value for value in found.values() if isinstance(value, dict))]
    for name, value in changes.items():
        for place in [one for one in places if name in one]:
            place[name] = value
        if name not in OPTIONAL and (name == "tie_word_embeddings" or not any(name in one for one in places)):
            found[name] = value
    return found


def true_changes(
    folder: Path,
    files: Files,
    changes: Mapping[str, Any],
    rows: int | None = None,
    tied: Callable[[frozenset[str]], bool] = lambda missing: False,
    architectures: Collection[str] = (),
    kept: Collection[str] = (),
    equal: Callable[[str, str], bool] | None = None,
) -> Mapping[str, Any]:
    """What of a folder's config.json is not true of these weights, with what is, so that they load whole.

    Args:
        folder: with the configuration.
        files: the weights that are written.
        changes: what is known to be true already.
        rows: of a vocabulary that is cut.
        tied: whether weights of these names are missing since they are tied to others.
        architectures: that other models of the same weights have.
        kept: weights that are the base's own, which may be of another dtype than all others.
        equal: whether two weights of these names are the same in the experts, where that can be known.

    Raises:
        MergeError: a configuration that is no JSON, or with which the weights do not load whole.
    """
    about = read_config(folder)
    if rows is not None:
        about = without_numbers(about, rows)
    merged = {name: about for name, about in files.items() if name not in kept}
    changes = {**_dtype(about, merged), **changes}
    try:
        first = load(changed(about, changes), files)
    except MergeError as error:
        raise MergeError(f"{folder / CONFIG}: {error}") from error
    if first is None or first.whole:
        untied = first is not None and equal is not None and not all(equal(*names) for names in first.tied)
        return {**changes, "tie_word_embeddings": False} if untied else changes
    for kind in (None, *dict.fromkeys([*architectures, *related(about)])):
        tried = changes if kind is None else {**changes, "architectures": [kind]}
        if (found := _mended(about, tried, files, tied)) is not None:
            message = {name: value for name, value in found.items() if name not in changes and name in REPORTED}
            if message:
                say(f"{CONFIG} is written with {', '.join(f'{name}: {value}' for name, value in message.items())}")
            return found
    name = about["architectures"][0]
    raise MergeError(
        f"the merged weights do not load whole as {name} by {folder / CONFIG}: {first}; mend its entries, leave out "
        "what is too much with exclude, or write to a name that ends in .safetensors"
    )


def _mended(
    about: Mapping[str, Any], changes: Mapping[str, Any], files: Files, tied: Callable[[frozenset[str]], bool]
) -> dict[str, Any] | None:
    """The changes, with what loading by them shows, where the weights then load whole."""
    tried = dict(changes)
    try:
        for _ in range(2):
            loaded = load(changed(about, tried), files)
            if loaded is None or loaded.whole:
                return None if loaded is None else tried
            tried |= _of_shapes(loaded)
            if loaded.missing and tied(loaded.missing):
                tried["tie_word_embeddings"] = True
    except MergeError:  # of another architecture, which this configuration may not be for
        pass
    return None


def _of_shapes(loaded: Loaded) -> dict[str, Any]:
    """What shapes say about the numbers of tokens and of classes."""
    found: dict[str, Any] = {}
    tokens = {rows_of(name, here) for name, (here, _) in loaded.mismatched.items() if is_vocabulary(name)}
    if len(tokens) == 1:
        found["vocab_size"] = tokens.pop()
    heads = {here[0] for name, (here, there) in loaded.mismatched.items() if here[1:] == there[1:] and here}
    heads = heads if not found else set()
    if len(heads) == 1:
        count = heads.pop()
        found["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        found["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    return found


def _dtype(about: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """The dtype of the weights, where the configuration names one that none of them has."""
    sizes: dict[str, int] = {}
    for shape, dtype in files.values():
        if dtype.is_floating_point:
            name = str(dtype).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + torch.Size(shape).numel()
    parts = [about, *(value for value in about.values() if isinstance(value, dict))]
    message = {part[name] for part in parts for name in OPTIONAL if part.get(name) in _FLOATS}
    if not sizes or message <= sizes.keys():
        return {}
    return dict.fromkeys(OPTIONAL, max(sizes, key=sizes.__getitem__))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        MergeError: it is no JSON object.
    """
    try:
        about = parse_json((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise MergeError(f"{folder / CONFIG} next to the weights is no JSON: {error}") from error
    if not isinstance(about, dict):
        raise MergeError(f"{folder / CONFIG} next to the weights is no configuration: expected a JSON object")
    return about
