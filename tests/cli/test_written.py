"""YAML as it is written, and JSON without doubled keys."""

import json

import pytest
import yaml

from lit_merge.checkpoints.json_text import parse_json
from lit_merge.cli.written import DoubleKeyError, read_written

TRICKY = [
    "no",
    "on",
    "yes",
    "Off",
    "null",
    "Null",
    "~",
    "1",
    "1.0",
    "0x10",
    "1_000",
    "010",
    "1e3",
    ".5",
    ".nan",
    "1:30",
]
TRICKY += ["2024-01-01", "2024-01-01 10:00:00", "true", "TRUE", "=", "a.b", "é", ""]


@pytest.mark.parametrize("name", [one for one in TRICKY if one])
def test_names_stay_as_they_are_written(name: str) -> None:
    assert read_written(f"{name}: x\n") == read_written(f"{{{name}: x}}") == {name: "x"}
    assert read_written(f'"{name}": x\n') == {name: "x"}
    expected = None if name in ("null", "Null", "~") else name
    assert read_written(f"x: {name}\n") == {"x": expected}
    assert read_written(f"- {name}\n- '{name}'\n") == [expected, name]


def test_what_yaml_writes_is_read_again() -> None:
    content = {name: [name, {"x": name}] for name in TRICKY}
    assert read_written(yaml.safe_dump(content, allow_unicode=True)) == content
    assert read_written(json.dumps(content)) == content
    assert read_written("") is None
    assert read_written("a:\n") == {"a": None}
    assert read_written("a: !!str 5\nb: !!int 5\nc: |\n  1\n") == {"a": "5", "b": "5", "c": "1\n"}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", (1, 3)),
        ("x:\n  - {k: 1,\n     k: 2}\n", (2, 3)),
        ("1: x\n'1': y\n", (1, 2)),
        ("no: x\nfalse: z\n\n\nno: y\n", (1, 5)),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  y: 1\n  y: 2\n", (4, 5)),
    ],
)
def test_a_key_that_stands_twice(text: str, lines: tuple[int, int]) -> None:
    with pytest.raises(DoubleKeyError, match=f"stands twice, in line {lines[0]} and in line {lines[1]}"):
        read_written(text)


def test_anchors_and_merge_keys_are_those_of_yaml() -> None:
    """PyYAML reads the same, where nothing is but text."""
    for text in (
        "a: &a {x: one, y: two}\nb: {<<: *a, x: three}\n",
        "a: &a {x: one}\nb: &b {x: two, z: three}\nc:\n  x: own\n  <<: [*a, *b]\n",
        "a: &a {x: one}\nb: &b {x: two, z: three}\nc:\n  <<: [*a, *b]\n",
        "a: &a {x: one}\nb: &b {<<: *a, y: two}\nc: {<<: *b}\n",
        "a: &t text\nb: [*t, *t]\n",
    ):
        assert read_written(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text", ["a: !tag x", "a: !!python/name:os.system", "? [a, b]\n: c", "a: &a\n  b: *a", "<<: 1"]
)
def test_what_no_configuration_has(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        read_written(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_any_encoding(encoding: str) -> None:
    assert parse_json('{"é": [1, {"a": null}]}'.encode(encoding)) == {"é": [1, {"a": None}]}
    with pytest.raises(ValueError, match="the key 'é' stands twice"):
        parse_json('{"x": {"é": 1, "b": 2, "é": 3}}'.encode(encoding))
