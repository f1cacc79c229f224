"""What can be named in a configuration: classes, their docstrings, and their options, read off the sources. None of
them is imported, so that it takes no time."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Kind → its base class, where its classes are, and where one stands in a configuration.
KINDS = {
    "merging method": ("MergeMethod", "methods", "model.method"),
    "transform of task vectors": ("Transform", "methods", "model.transform"),
    "objective": ("Objective", "objectives.py", "model.objective"),
    "network": ("Network", "networks", "model.network"),
    "data": ("TaskData", "data", "data"),
    "augmentation": ("Augmentation", "data", "data.augment"),
    "callback": ("Callback", "adaptation/callbacks", "trainer.callbacks"),
    "part of a fit": ("Finite", "adaptation", "model"),
}
_PAPER = re.compile(r"\b(\d{4}\.\d{5})\b")
# A name for a choice of types.
_ALIAS = re.compile(r"^([A-Z]\w+) = (Literal\[[^\]]*\]|[\w\[\]]+(?: \| [\w\[\]]+)+)$", re.MULTILINE)
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns):$", re.MULTILINE)

# Names at the margin of a section, and what is said of them as far as the next ones.
_ARGUMENT = re.compile(r"^    (\w[\w, ]*): (.*?)(?=^    \w[\w, ]*: |\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Option:
    """One option of a class.

    Attributes:
        name, kind: as the source has them; the kind is a type.
        default: as the source has it; empty where it has to be given.
        text: what the docstring says of it.
    """

    name: str
    kind: str
    default: str
    text: str


@dataclass(frozen=True)
class Entry:
    """One class.

    Attributes:
        name: of the class.
        kind: one of `KINDS`.
        place: where it stands in a configuration.
        file: of its source, below the package.
        title: what it is, in one line.
        text: what its docstring says before the options.
        options: in their order.
        papers: numbers of arXiv.
    """

    name: str
    kind: str
    place: str
    file: str
    title: str
    text: str
    options: tuple[Option, ...]
    papers: tuple[str, ...]


@cache
def catalogue() -> dict[str, Entry]:
    """Name → entry, of every public class of the kinds, in their order."""
    classes = dict(_classes())
    public = set(re.findall(r" as (\w+)$", (ROOT / "__init__.pyi").read_text(encoding="utf-8"), re.MULTILINE))
    entries: dict[str, Entry] = {}
    for kind, (base, _, place) in KINDS.items():
        for name, (node, file, module) in classes.items():
            if base in _bases(node, classes) and (name in public or _is_objective(node)):
                if kind == "part of a fit" and name not in ("Stage", "AdaRank", "Correction"):
                    continue
                if name not in entries:
                    entries[name] = _entry(name, kind, place, node, file, module, classes)
    return entries


Found = tuple[ast.ClassDef, str, str]


def _classes() -> Iterator[tuple[str, Found]]:
    """Every class in the places of `KINDS`, with its file and the docstring of that."""
    files = [ROOT / place for _, place, _ in KINDS.values()]
    paths = [path for one in files for path in (sorted(one.rglob("*.py")) if one.is_dir() else [one])]
    for path in dict.fromkeys(paths):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                yield node.name, (node, str(path.relative_to(ROOT)), ast.get_docstring(tree) or "")


def _bases(node: ast.ClassDef, classes: dict[str, Found]) -> set[str]:
    """Names of all classes that one is below."""
    found: set[str] = set()
    for base in node.bases:
        name = ast.unparse(base).rpartition(".")[2]
        # Some are called as what they are made of.
        above = _bases(classes[name][0], classes) if name in classes and name != node.name else set()
        found |= {name} | above
    return found


def _is_objective(node: ast.ClassDef) -> bool:
    """Whether this is one of the objectives, which are public by their module."""
    return [ast.unparse(base) for base in node.bases] == ["Objective"]


def _entry(
    name: str, kind: str, place: str, node: ast.ClassDef, file: str, module: str, classes: dict[str, Found]
) -> Entry:
    docstring = ast.get_docstring(node) or ""
    text, described = sections(docstring)
    first, _, title = module.partition(": ")
    single = first == name or first.replace("-", "").lower() == name.lower()
    papers = _PAPER.findall(docstring) or (_PAPER.findall(module) if kind.startswith(("merging", "transform")) else [])
    options = tuple(
        Option(option, _spelled_out(kind_of), default, described.get(option, _inherited(node, option, classes)))
        for option, kind_of, default in _options(node, classes)
    )
    title = (
        title.partition("\n")[0]
        if single
        else " ".join(text.partition("\n\n")[0].split()).partition(". ")[0].rstrip(".") + "."
    )
    return Entry(name, kind, place, file, title, text, options, tuple(dict.fromkeys(papers)))


def sections(docstring: str) -> tuple[str, dict[str, str]]:
    """What a docstring says before its sections, and name → text of its arguments; several names may share a text.

    >>> sections("Adds.\\n\\nArgs:\\n    a, b: what is\\n        added.\\n")
    ('Adds.', {'a': 'what is added.', 'b': 'what is added.'})
    """
    pieces = _SECTION.split(docstring)
    described: dict[str, str] = {}
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if title not in ("Args", "Attributes"):
            continue
        for names, text in _ARGUMENT.findall(body):
            described |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return pieces[0].strip(), described


def _options(node: ast.ClassDef, classes: dict[str, Found]) -> list[tuple[str, str, str]]:
    """Name, type and default of every option: arguments of `__init__`, or the fields of a dataclass."""
    init = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if init is not None:
        arguments = [*init.args.args[1:], *init.args.kwonlyargs]
        defaults = [*([None] * (len(init.args.args) - 1 - len(init.args.defaults))), *init.args.defaults]
        defaults += list(init.args.kw_defaults)
        return [
            (one.arg, "" if one.annotation is None else ast.unparse(one.annotation), _default(default))
            for one, default in zip(arguments, defaults, strict=True)
        ]
    own = [
        (one.target.id, ast.unparse(one.annotation), _default(one.value))
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        if not ast.unparse(one.annotation).startswith("ClassVar") and not one.target.id.startswith("_")
    ]
    inherited = [
        option
        for base in node.bases
        if (name := ast.unparse(base)) in classes and name != node.name
        for option in _options(classes[name][0], classes)
    ]
    names = {name for name, _, _ in own}
    dataclass_like = any("dataclass" in ast.unparse(one) for one in node.decorator_list)
    return [*(one for one in inherited if one[0] not in names), *(own if dataclass_like else [])]


@cache
def _aliases() -> dict[str, str]:
    """Names for choices of types → what they stand for."""
    found = (_ALIAS.findall(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py")))
    return {name: stands_for for one in found for name, stands_for in one}


def _spelled_out(kind: str) -> str:
    """A type in words that a configuration takes: names for choices are replaced by these.

    >>> _spelled_out("Granularity | None")
    "'tied' | 'task' | 'block' | 'layer' | 'direction' | None"
    """
    whole = re.sub(r"[A-Z]\w+", lambda name: _aliases().get(name[0], name[0]), kind)
    if whole != kind:
        return _spelled_out(whole)
    return re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace('"', "'").replace(", ", " | "), whole)


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        value = next((one.value for one in value.keywords if one.arg == "default"), None)
    return "" if value is None else ast.unparse(value)


def _inherited(node: ast.ClassDef, option: str, classes: dict[str, Found]) -> str:
    """What a class above says of an option."""
    for base in node.bases:
        if (name := ast.unparse(base).rpartition(".")[2]) in classes and name != node.name:
            above = classes[name][0]
            text = sections(ast.get_docstring(above) or "")[1].get(option) or _inherited(above, option, classes)
            if text:
                return text
    return ""
