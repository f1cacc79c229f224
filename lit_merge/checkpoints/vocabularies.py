"""How many tokens the tokenizer in a folder has, by its files alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_merge.configuration.json_text import parse_json
from lit_merge.errors import MergeError


def token_count(folder: Path) -> int:
    """The highest number of a token, and one; 0 where the folder has no tokenizer.

    Raises:
        MergeError: a file that is no JSON, or not of a tokenizer.
    """
    return max(_numbers(folder), default=-1) + 1


def _numbers(folder: Path) -> Iterator[int]:
    if about := _read(folder / "tokenizer.json"):
        vocabulary = (about.get("model") or {}).get("vocab") or ()
        # Unigram models have a list, whose order numbers the tokens.
        yield from vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        yield from (token["id"] for token in about.get("added_tokens") or ())
    yield from _read(folder / "vocab.json").values()
    yield from _read(folder / "added_tokens.json").values()
    yield from map(int, _read(folder / "tokenizer_config.json").get("added_tokens_decoder") or ())
    if (folder / "vocab.txt").is_file():
        yield from range(len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines()))


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        about = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise MergeError(f"{file} cannot be read as a tokenizer's JSON: {error}") from error
    if not isinstance(about, dict):
        raise MergeError(f"{file} is not of a tokenizer: expected a JSON object")
    return about
