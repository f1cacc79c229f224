"""Folders as digests, to say whether two are alike to the bit."""

import hashlib
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

Tree = Mapping[str, str]
"""Relative path → digest of the content and the mode, or what else stands there."""


def tree(folder: Path, names: Iterable[str] | None = None) -> Tree:
    """All that is in a folder, or what stands there at some names."""
    tops = sorted(folder.iterdir()) if names is None else [folder / name for name in sorted(names)]
    found: dict[str, str] = {}
    for top in tops:
        inside = sorted(top.rglob("*")) if top.is_dir() and not top.is_symlink() else []
        for path in [top, *inside]:
            if path.is_symlink():
                found[str(path.relative_to(folder))] = f"a link to {path.readlink()}"
            elif path.is_dir():
                found[str(path.relative_to(folder))] = "a folder"
            elif path.is_file():
                digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
                found[str(path.relative_to(folder))] = f"{stat.S_IMODE(path.stat().st_mode):o} {digest}"
            elif path.exists():
                found[str(path.relative_to(folder))] = "neither a file nor a folder"
    return found


def difference(found: Tree, wanted: Tree, loose: Iterable[str] = ()) -> str:
    """The first difference in words; nothing where they are alike. Of loose files only the place counts."""
    free = set(loose)
    for path in sorted(found.keys() | wanted.keys()):
        if path not in found:
            return f"{path} is missing"
        if path not in wanted:
            return f"{path} is too much"
        if path not in free and found[path] != wanted[path]:
            return f"{path} is another one"
    return ""
