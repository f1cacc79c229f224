"""The task on docstrings: which library a first paragraph was written for, its name masked."""

import ast
import re
import sysconfig
import warnings
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from text_suite.packages import LIBRARIES, archive
from text_suite.splits import Text


def doc(downloads: Path) -> Iterator[Text]:
    """First paragraph of a docstring → library; a module stays in one split."""
    for library, pin in LIBRARIES.items():
        found = archive(downloads, pin)
        assert found is not None
        with zipfile.ZipFile(found) as wheel:
            for name in sorted(wheel.namelist()):
                if name.startswith(f"{library}/") and name.endswith(".py"):
                    yield from paragraphs(wheel.read(name), library, name)
    # Not downloaded again: far larger than all others, and installed wherever this runs.
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    yield from _installed("torch", Path(spec.origin).parent)
    yield from _installed("stdlib", Path(sysconfig.get_path("stdlib")))


def _installed(library: str, folder: Path) -> Iterator[Text]:
    for path in sorted(folder.rglob("*.py")):
        name = f"{library}/{path.relative_to(folder)}"
        if "site-packages" not in name and "idlelib" not in name:
            yield from paragraphs(path.read_bytes(), library, name)


def paragraphs(source: bytes, library: str, module: str) -> Iterator[Text]:
    """The first paragraphs of a module's docstrings, five words or more, tests left out."""
    if "/test" in module:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (found := ast.get_docstring(node)):
            text = re.sub(rf"\b{library}\w*", "it", re.split(r"\n\s*\n", found)[0], flags=re.IGNORECASE)
            if len(text.split()) >= 5:
                yield Text(" ".join(text.split()[:32]), library, module)
