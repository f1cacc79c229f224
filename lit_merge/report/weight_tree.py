"""Weights as a tree of modules, with blocks that are alike shown once."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from rich.markup import escape
from rich.tree import Tree


@dataclass
class Module:
    """Modules and weights by the parts of their names.

    Attributes:
        children: next part of the name → module.
        leaf: what is said of the weight of this name, where there is one.
        count: number of its values, with those of the modules below.
    """

    children: dict[str, "Module"] = field(default_factory=dict)
    leaf: str | None = None
    count: int = 0

    def add(self, parts: list[str], leaf: str, count: int) -> None:
        self.count += count
        if not parts:
            self.leaf = leaf
            return
        self.children.setdefault(parts[0], Module()).add(parts[1:], leaf, count)

    def same_as(self, other: "Module") -> bool:
        """Whether names, shapes and types below are the same."""
        return (
            self.leaf == other.leaf
            and self.children.keys() == other.children.keys()
            and all(one.same_as(other.children[part]) for part, one in self.children.items())
        )


def weight_tree(
    weights: Mapping[str, tuple[str, int]], title: str, depth: int | None = None, whole: bool = False
) -> Tree:
    """A tree of modules down to the weights.

    Args:
        weights: name → what to say of it (shape, dtype), and number of its values.
        title: of the root.
        depth: how many levels to show; all by default.
        whole: shows every block of a stack, rather than one for those that are alike.
    """
    root = Module()
    for name, (leaf, count) in weights.items():
        root.add(name.split("."), leaf, count)
    tree = Tree(title, highlight=False)
    _grow(tree, root, depth, whole)
    return tree


def _grow(tree: Tree, module: Module, depth: int | None, whole: bool) -> None:
    if depth == 0:
        return
    for parts in _alike(module.children, whole):
        child = module.children[parts[0]]
        times = f" ({len(parts)} alike)" if len(parts) > 1 else ""
        name = f"[bold]{escape(_range(parts))}[/bold]{times}"
        said = escape(child.leaf) if child.leaf is not None else f"{millions(child.count * len(parts))} parameters"
        _grow(tree.add(f"{name}  {said}", highlight=False), child, depth and depth - 1, whole)


def _alike(children: Mapping[str, Module], whole: bool) -> Iterator[list[str]]:
    """Names of children; consecutive numbers of modules that are the same, together."""
    numbers = sorted((part for part in children if part.isdecimal()), key=int)
    parts = [part for part in children if not part.isdecimal()] + numbers
    group: list[str] = []
    for part in parts:
        if group and not (
            not whole
            and part.isdecimal()
            and group[-1].isdecimal()
            and int(part) == int(group[-1]) + 1
            and children[part].same_as(children[group[-1]])
        ):
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _range(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{parts[0]} … {parts[-1]}"


def collapsed(names: Iterable[str]) -> dict[str, list[str]]:
    """Pattern with `#` for the number of a block → the names that it stands for.

    >>> collapsed(["h.0.w", "h.1.w", "x"])
    {'h.#.w': ['h.0.w', 'h.1.w'], 'x': ['x']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        parts = ["#" if part.isdecimal() else part for part in name.split(".")]
        found.setdefault(".".join(parts), []).append(name)
    return found


def millions(count: int) -> str:
    """A count of parameters for people.

    >>> millions(950), millions(87_849_216), millions(2_100_000_000)
    ('950', '87.8 M', '2.10 B')
    """
    for limit, unit, digits in ((1e9, "B", 2), (1e6, "M", 1), (1e4, "k", 1)):
        if count >= limit:
            return f"{count / (1e3 if unit == 'k' else limit):.{digits}f} {unit}"
    return str(count)


def megabytes(count: int) -> str:
    """Bytes for people.

    >>> megabytes(512), megabytes(26_700_000), megabytes(5_100_000_000)
    ('512 bytes', '26.7 MB', '5.10 GB')
    """
    for limit, unit, digits in ((1e9, "GB", 2), (1e6, "MB", 1), (1e3, "kB", 1)):
        if count >= limit:
            return f"{count / limit:.{digits}f} {unit}"
    return f"{count} bytes"


def runs_of(values: Iterable[str]) -> str:
    """Values in order with how often each comes.

    >>> runs_of(["F32", "F32", "I64"])
    '2 × F32, I64'
    """
    counted = [(value, len(list(group))) for value, group in groupby(sorted(values))]
    return ", ".join(value if count == 1 else f"{count} × {value}" for value, count in counted)
