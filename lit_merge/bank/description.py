"""The description of a task bank, `bank.json`: what its tensors are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_merge.bank.learnt import is_learnt
from lit_merge.bank.packing import BASE, Packed
from lit_merge.checkpoints import PLAIN, Naming
from lit_merge.checkpoints.checkpoint import DTYPES
from lit_merge.checkpoints.families import FAMILIES
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.errors import MergeError

# 2 and 3 are written where there is more than version 1 holds, which earlier programs then refuse.
FORMAT_VERSION = 3
FIELDS = {"method": dict, "tasks": list, "layers": list, "dtypes": dict}
DTYPES_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


def parse_description(text: bytes, path: Path) -> dict[str, Any]:
    """The description that a bank's JSON holds, with dtypes and the naming as objects.

    Raises:
        MergeError: no JSON, a newer format, a field that is missing or is something else.
    """
    try:
        about = parse_json(text, unicode=False)
    except ValueError as error:
        raise MergeError(f"{path} is damaged: {error}") from error
    version = about.get("format_version") if isinstance(about, dict) else None
    if not isinstance(version, int):
        raise MergeError(f"{path} is damaged: it has no format_version")
    if version > FORMAT_VERSION:
        raise MergeError(f"{path} has format version {version}; this lit_merge reads up to {FORMAT_VERSION}: update it")
    for field, kind in FIELDS.items():
        if not isinstance(about.get(field), kind):
            raise MergeError(f"{path} is damaged: it has no {field}")
    for field in ("tasks", "layers"):
        names = about[field]
        if not all(isinstance(name, str) and _is_text(name) for name in names) or len(set(names)) < len(names):
            raise MergeError(f"{path} is damaged: {field} are no list of different names")
    for name, dtype in about["dtypes"].items():
        if not isinstance(dtype, str) or dtype not in DTYPES_BY_NAME:
            raise MergeError(f"{path} is damaged: the dtype of {name} is {dtype!r}", weight=name)
    for field, empty in {"ranks": {}, "nbytes": 0, "learnt": [], "checksums": {}, "recipe": {}}.items():
        # Banks of the first days lack some of them.
        if not isinstance(about.setdefault(field, empty), type(empty)):
            raise MergeError(f"{path} is damaged: {field} is {about[field]!r}")
    if not all(isinstance(one, str) for one in about["checksums"].values()):
        raise MergeError(f"{path} is damaged: its checksums are no texts")
    if not all(isinstance(key, str) and is_learnt(key) for key in about["learnt"]):
        raise MergeError(f"{path} is damaged: learnt is {about['learnt']!r}")
    if "packed" in about:
        _parse_packed(about, path)
    about["dtypes"] = {name: DTYPES_BY_NAME[dtype] for name, dtype in about["dtypes"].items()}
    about["naming"] = _naming(about, path)
    return about


def _parse_packed(about: dict[str, Any], path: Path) -> None:
    """Makes objects of what a compressed bank says of its weights, and checks what it says of its base."""
    try:
        ranks = [about[name] for about in about["packed"].values() for name in about.keys() - {"shape", "origin"}]
        rows = len(ranks[0].split()) if ranks else 0
        about["packed"] = {name: Packed.parse(one, rows) for name, one in about["packed"].items()}
        base = about.get("base", {"location": "", "checksums": {}})
        sums = base["checksums"]
        named = all(isinstance(text, str) for text in (base["location"], *sums.values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise MergeError(f"{path} is damaged: what it says of its tensors is none of format version 3") from error
    by_base = {name for name, one in about["packed"].items() if one.origin == BASE}
    if about["packed"].keys() != about["dtypes"].keys() or not named or not by_base <= sums.keys():
        raise MergeError(f"{path} is damaged: what it says of its tensors is not of its weights")
    if rows and rows != len(about["tasks"]) + ("base" in about) and rows != 1 + ("base" in about):
        raise MergeError(f"{path} is damaged: ranks of {rows} tasks, of {len(about['tasks'])}")


def _naming(about: Mapping[str, Any], path: Path) -> Naming:
    """The naming that a bank's description records; `PLAIN` where it is from a time before there were others.

    Raises:
        MergeError: a naming that this lit_merge does not know.
    """
    if "naming" not in about:
        return PLAIN
    try:
        naming = Naming(**about["naming"])
    except TypeError:
        naming = None
    if (
        naming is None
        or naming.family not in [family.name for family in FAMILIES]
        or not all(isinstance(part, str) for part in (naming.prefix, naming.image, naming.text))
    ):
        raise MergeError(f"{path}: unknown naming {about['naming']!r}: update lit_merge")
    return naming


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
