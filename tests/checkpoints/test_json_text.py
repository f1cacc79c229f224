"""JSON that is refused, and lines that notice when they were changed."""

import json

import pytest

from lit_merge.checkpoints.json_text import parse_json, parse_sealed, sealed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nests too deeply"),
        ('{"a":' * 100_000, "nests too deeply"),
        (r'{"a": ["\ud800"]}', "half of a character"),
        (r'{"\udc80": 1}', "half of a character"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ("1" * 5000, "digits"),
        (b"caf\xe9", "utf-8"),
        (b'{"a": \0}', "Expecting value"),
        ("", "Expecting value"),
    ],
)
def test_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_pairs_of_halves_are_characters() -> None:
    assert parse_json(json.dumps({"a": ["😀", "\\ud800"]})) == {"a": ["😀", "\\ud800"]}


def test_a_seal_sees_every_change() -> None:
    about = {
        "step": 3,
        "names": ["ä", "b"],
        "loss": float("inf"),
        "none": None,
        "more": {"1": [0.1, True]},
        "file": "caf\udce9",
    }
    for indent in (None, 1):
        text = sealed(about, indent)
        assert text.isascii()
        assert parse_sealed(text) == about
        changed = [text[:i] + text[i + 1 :] for i in range(len(text)) if text[i].isalnum()]
        changed += [
            text.replace("3", "4", 1),
            text.replace("true", "false"),
            text[: len(text) // 2],
            "[]",
            "null",
            "{}",
        ]
        for other in changed:
            with pytest.raises(ValueError):  # noqa: PT011  of many kinds
                parse_sealed(other)
