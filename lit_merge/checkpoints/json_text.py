"""JSON in any of its encodings, in which no key stands twice."""

import json
from collections import Counter
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What a file or a line of JSON holds; bytes are UTF-8, UTF-16 or UTF-32, with or without a mark in front.

    >>> parse_json('{"a": 1}'.encode("utf-16"))
    {'a': 1}

    Raises:
        ValueError: no JSON, another encoding, or a key that stands twice in an object: JSON would keep the last.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {next(key for key, count in times.items() if count > 1)!r} stands twice: remove one")
    return found
