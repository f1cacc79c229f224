"""Tokenizer and configuration of a model whose vocabulary was cut: without the tokens that have no row any more."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lit_merge.checkpoints.companions.vocabularies import content, read_json, read_tokens


def trim(folder: Path, rows: int) -> None:
    """Takes the tokens from number `rows` on out of all files of the tokenizer in a folder, and their numbers out of
    the configurations; leaves a tokenizer alone that has none of them.

    Raises:
        MergeError: a file that is no JSON, or not of a tokenizer.
    """
    tokens = read_tokens(folder)
    gone = {token for number, token in tokens.items() if number >= rows}
    # What is numbered twice is still there.
    gone -= {token for number, token in tokens.items() if number < rows}
    if gone:
        _rewrite(folder / "tokenizer.json", lambda about: _fast(about, gone, rows))
        for name in ("vocab.json", "added_tokens.json"):
            _rewrite(folder / name, lambda about: {token: n for token, n in about.items() if n < rows})
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            _rewrite(folder / name, lambda about: _settings(about, gone, rows))
        if (file := folder / "vocab.txt").is_file():
            lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
            file.write_text("\n".join(lines[:rows]) + "\n", encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        _rewrite(folder / name, lambda about: without_numbers(about, rows))


def _rewrite(file: Path, change: Any) -> None:
    before = read_json(file)
    if before and (after := change(before)) != before:
        file.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _fast(about: dict[str, Any], gone: Collection[str], rows: int) -> dict[str, Any]:
    """tokenizer.json: tokens, merges that make or take what is gone, and templates that put it in."""
    model = dict(about.get("model") or {})
    if isinstance(vocabulary := model.get("vocab"), dict):
        model["vocab"] = {token: number for token, number in vocabulary.items() if number < rows}
    elif vocabulary:
        model["vocab"] = vocabulary[:rows]
    if merges := model.get("merges"):
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [one for one in merges if _kept(one, model["vocab"], prefix)]
    added = [token for token in about.get("added_tokens") or () if token["id"] < rows]
    return about | {"model": model, "added_tokens": added} | _templates(about, gone)


def _kept(merge: str | list[str], vocabulary: Mapping[str, int], prefix: str) -> bool:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first in vocabulary and second in vocabulary and first + second.removeprefix(prefix) in vocabulary


def _templates(about: Mapping[str, Any], gone: Collection[str]) -> dict[str, Any]:
    processor = about.get("post_processor")
    steps = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for step in (one for one in steps if one.get("type") == "TemplateProcessing"):
        for kind in ("single", "pair"):
            step[kind] = [one for one in step[kind] if one.get("SpecialToken", {}).get("id") not in gone]
        step["special_tokens"] = {name: one for name, one in step["special_tokens"].items() if name not in gone}
    return {"post_processor": processor}


def _settings(about: dict[str, Any], gone: Collection[str], rows: int) -> dict[str, Any]:
    """Names of special tokens: what is named and not there would be added again when the tokenizer is loaded."""
    kept: dict[str, Any] = {}
    for name, value in about.items():
        if name == "added_tokens_decoder":
            value = {number: token for number, token in value.items() if int(number) < rows}
        elif isinstance(value, list):
            value = [one for one in value if content(one) not in gone]
        elif name.endswith("_token") and content(value) in gone:
            continue
        elif isinstance(value, dict):
            value = {key: one for key, one in value.items() if content(one) not in gone}
        kept[name] = value
    return kept


def without_numbers(about: dict[str, Any], rows: int) -> dict[str, Any]:
    """Numbers of tokens, as pad_token_id, none of which may be beyond the rows."""
    found = {}
    for name, value in about.items():
        if isinstance(value, dict):
            value = without_numbers(value, rows)
        elif name.endswith("_token_id") and isinstance(value, int) and value >= rows:
            value = None
        elif name.endswith("_token_id") and isinstance(value, list):
            value = [one for one in value if not (isinstance(one, int) and one >= rows)] or None
        found[name] = value
    return found
