"""YAML as it is written: keys and values stay text, of which the options' types make numbers where they want some.

YAML itself takes `no` for false, `0x10` for 16 and `1_000` for 1000, in names of tasks and of files too, and of two
equal keys only the last.
"""

from collections.abc import Iterator
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_TEXTS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "timestamp", "value")}
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class DoubleKeyError(ConstructorError):
    """A key that stands twice in one mapping."""


def read_written(text: str) -> Any:
    """Mappings, lists, text, and None for what is empty, `null` or `~`; `<<` and anchors work as in YAML.

    >>> read_written("{no: 0x10, 1.0: ~}")
    {'no': '0x10', '1.0': None}

    Raises:
        yaml.YAMLError: no YAML, a tag of another kind, or an anchor within itself.
        DoubleKeyError: one of them.
    """
    node = yaml.compose(text, Loader=_LOADER)
    return None if node is None else _Reading().value(node)


class _Reading:
    def __init__(self) -> None:
        self.known: dict[int, Any] = {}
        self.open: set[int] = set()

    def value(self, node: Node) -> Any:
        """What a node is; where several anchors lead to it, made once."""
        if id(node) in self.open:
            raise ConstructorError(None, None, "an anchor is used inside of itself", node.start_mark)
        if id(node) not in self.known:
            self.open.add(id(node))
            self.known[id(node)] = self._make(node)
            self.open.remove(id(node))
        return self.known[id(node)]

    def _make(self, node: Node) -> Any:
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(one) for one in node.value]
        if isinstance(node, ScalarNode) and node.tag == f"{_TAG}null":
            return None
        if isinstance(node, ScalarNode) and node.tag in (*_TEXTS, _MERGE):
            return node.value
        raise ConstructorError(None, None, f"there is no tag {node.tag!r} in configurations", node.start_mark)

    def _mapping(self, node: MappingNode) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key is a list or a mapping, expected a name", key.start_mark)
            if key.tag == _MERGE:
                for one in self._merged(value):
                    merged = one | merged
                continue
            line = key.start_mark.line + 1
            if key.value in found:
                message = f"the key {key.value!r} stands twice, in line {lines[key.value]} and in line {line}"
                raise DoubleKeyError(None, None, f"{message}: remove one of them", key.start_mark)
            found[key.value], lines[key.value] = self.value(value), line
        return merged | found

    def _merged(self, node: Node) -> Iterator[dict[str, Any]]:
        """The mappings of a `<<`, the first of which goes over the others."""
        for one in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(one, MappingNode):
                raise ConstructorError(None, None, "<< takes a mapping, or a list of mappings", one.start_mark)
            yield self.value(one)
