"""Pages of the site that are made of files outside docs/: the README, CONTRIBUTING, the changelog, the API."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TEXTS = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
PUBLIC = re.compile(r"^from \.([\w.]+) import (\w+) as \w+$", re.MULTILINE)
# Folder of the package → the section of its public names.
SECTIONS = {
    "methods": "Methods",
    "merge": "Merging",
    "choose": "Choosing",
    "experts": "Experts",
    "bank": "Task banks",
    "networks": "Networks and heads",
    "data": "Data",
    "adaptation": "Adaptation",
    "report": "Reports and figures",
    "checkpoints": "Files",
    "errors": "Errors",
}
# What a browser would fetch from another host.
LOADED = re.compile(
    r"<(?:script|img|iframe)[^>]* src=\"?https?:[^>]*>|<link[^>]* rel=\"?(?:stylesheet|preload|icon)[^>]*https?:[^>]*>"
)


def on_files(files: Files, config: Any) -> Files:
    """Called by MkDocs: adds the pages."""
    made = {page: relinked((ROOT / source).read_text(encoding="utf-8")) for page, source in TEXTS.items()}
    made["api.md"] = api((ROOT / "lit_merge" / "__init__.pyi").read_text(encoding="utf-8"))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def relinked(text: str) -> str:
    """Links of a file in the repository's root, as they are from docs/. What has no page is named without a link."""
    text = text.replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")
    text = text.replace("](CHANGELOG.md)", "](changelog.md)")
    return re.sub(r"\[([^\]]+)\]\((?!https?:|[\w/]+\.(?:md|svg|txt)|#)[^)]+\)", r"`\1`", text)


def api(stub: str) -> str:
    """The reference: every public name under the folder that defines it."""
    names = defaultdict(list)
    for module, name in PUBLIC.findall(stub):
        names[module.partition(".")[0]].append(f"lit_merge.{module}.{name}")
    lines = ["# Python reference", "", "All of these are imported from `lit_merge`: `from lit_merge import CART`.", ""]
    for room, title in SECTIONS.items():
        lines += [f"## {title}", "", *(f"::: {name}\n" for name in names.pop(room))]
    if names:
        raise ValueError(f"public names of {', '.join(names)} have no section")
    return "\n".join(lines)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Called by MkDocs for every page. Raises PluginError where it would load anything from elsewhere."""
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
    return output
