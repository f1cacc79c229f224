"""JSON in any of its encodings, in which no key stands twice; and lines of it that carry a digest of themselves."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_merge.checkpoints.input_file import InputFile
from lit_merge.errors import MergeError

# Half of a pair of UTF-16: text that holds one alone cannot be written or printed.
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str | bytes, unicode: bool = True) -> Any:
    """What a file or a line of JSON holds; bytes are UTF-8, UTF-16 or UTF-32, with or without a mark in front.

    Args:
        text: the JSON.
        unicode: off where names of files may stand in it, which need not be text.

    >>> parse_json('{"a": 1}'.encode("utf-16"))
    {'a': 1}

    Raises:
        ValueError: no JSON, another encoding, a key that stands twice in an object (JSON would keep the last), text
            that is no Unicode, or lists within lists without end.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    try:
        found = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    if unicode and _ESCAPED.search(text):
        _check_unicode(found)
    return found


def sealed(about: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON, of ASCII alone and without `indent` in one line, with a digest of the rest as the last key."""
    return json.dumps({**about, "digest": _digest(json.dumps(about))}, indent=indent)


def parse_sealed(text: str | bytes) -> dict[str, Any]:
    """What `sealed` has written.

    >>> parse_sealed(sealed({"a": (1, 2)}))
    {'a': [1, 2]}

    Raises:
        ValueError: it was cut or changed since, or is something else.
    """
    return unsealed(parse_json(text, unicode=False))


def unsealed(found: Any) -> dict[str, Any]:
    """What was parsed of `sealed`, without the digest. Raises ValueError as `parse_sealed`."""
    rest = {key: value for key, value in found.items() if key != "digest"} if isinstance(found, dict) else None
    if rest is None or found.get("digest") != _digest(json.dumps(rest)):
        raise ValueError("it was changed after it was written")
    return rest


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_object(path: Path, kind: str) -> dict[str, Any]:
    """The object in a file of JSON; `kind` says what it should be.

    Raises:
        MergeError: a file that cannot be read, is no JSON, or holds no object.
    """
    text = InputFile(path, f"a {kind}").text(f"a {kind}")
    try:
        found = parse_json(text)
    except ValueError as error:
        raise MergeError(f"{path} is no JSON, expected a {kind}: {error}") from error
    if not isinstance(found, dict):
        raise MergeError(f"{path} is no {kind}: expected a JSON object")
    return found


def entries_of(path: Path) -> dict[str, Any]:
    """The object in a file of JSON that may be missing, or something else: nothing then."""
    try:
        return read_object(path, "configuration")
    except MergeError:
        return {}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {next(key for key, count in times.items() if count > 1)!r} stands twice: remove one")
    return found


def _check_unicode(value: Any) -> None:
    if isinstance(value, str) and _HALF.search(value):
        raise ValueError(f"{value!r} is no text: it holds half of a character")
    for one in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_unicode(one)
