"""Every block of every page, in process and at little cost. What this holds to:

- a command: its verb is there, and its options and values are taken by the verb's own parser;
- YAML: `fit` takes it, over the whole configuration of its page, or over `configs/cart.yaml`;
- Python: it compiles, and all that it imports of lit_merge is there.

Blocks that do more are run whole by the tests of their pages, in this folder, which look at what comes out.
"""

import argparse
import ast
import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from lit_merge.cli import main as front
from lit_merge.cli.command_parser import ParserFound, parsers_only
from lit_merge.cli.parsing import parsing
from lit_merge.cli.shipped import with_shipped
from lit_merge.cli.threads import settle_waiting

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
COMMAND = re.compile(r"^(?:lit-merge|python -m lit_merge) +(.*)$", re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [
        body for kind, body in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if kind in languages
    ]


def of_all(*languages: str) -> list[Any]:
    """Every block of these languages, called after its page."""
    return [
        pytest.param(body, id=f"{page.stem}-{i}") for page in PAGES for i, body in enumerate(blocks(page, *languages))
    ]


@cache
def parser_of(verb: str, part: str = "") -> argparse.ArgumentParser:
    with parsers_only(), pytest.raises(ParserFound) as found:
        front.run_verb(verb, [part] if part else [])
    return found.value.parser


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(verb: str, arguments: list[str]) -> None:
    """As the verb does. Configurations that a page makes itself are `configs/cart.yaml` here."""
    part = arguments.pop(0) if verb == "bank" else ""
    parser = parser_of(verb, part)
    for i, argument in enumerate(arguments):
        if i and arguments[i - 1] == "--config" and not Path(argument).exists():
            arguments[i] = "configs/cart.yaml"
    with parsing(arguments, lambda: [action.dest for action in parser._actions]):
        parser.parse_args(arguments)


@pytest.mark.parametrize("block", of_all("bash"))
def test_commands(block: str, place: Path) -> None:
    for line in COMMAND.findall(block.replace("\\\n", " ")):
        verb, *arguments = shlex.split(line, comments=True)
        if verb == "--print-completion":
            continue
        assert verb in front.VERBS, line
        if "--help" not in arguments:
            parse(verb, with_shipped(settle_waiting(arguments)))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.stem)
def test_yaml(page: Path, place: Path) -> None:
    whole = "configs/cart.yaml"
    for i, block in enumerate(blocks(page, "yaml")):
        if "class_path: my_" in block:
            continue  # modules of the reader's own, which the page's test writes
        name = f"block{i}.yaml"
        Path(name).write_text(block, encoding="utf-8")
        if "experts:" in block and "data:" in block:
            whole = name
        parse("fit", ["--config", whole, "--config", name])


@pytest.mark.parametrize("block", of_all("python"))
def test_python(block: str) -> None:
    tree = ast.parse(block)
    compile(tree, "block", "exec")
    public = (ROOT / "lit_merge" / "__init__.pyi").read_text(encoding="utf-8")
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("lit_merge"):
            continue
        for name in (alias.name for alias in node.names):
            if node.module == "lit_merge":
                assert f" as {name}\n" in public, name
            else:
                assert hasattr(import_module(str(node.module)), name), name
